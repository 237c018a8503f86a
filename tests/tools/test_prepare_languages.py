"""tools/prepare_languages.py: paragraphs of manual pages as they stand, and those of two pages side by side."""

import gzip

import pytest

from tools.prepare_languages import LANGUAGES, list_paragraphs, main, pair_paragraphs

PAGE = r"""'\" t
.\" a comment
.TH brk 2 2022-12-04 "Linux man-pages 6.03"
.SH NAME
brk, sbrk \- change data segment size
.SH "RETURN VALUE"
.nf
.B #include <unistd.h>
.fi
.PP
On success,
.BR brk ()
returns
.IR "zero or" \fBmore\fP.
.\" .BR hidden ()
.TP
.B ENOMEM
No memory \(em see \fI/proc/sys\fP.
.IP \(bu 3
A\ bullet \(aqquoted\(aq and \[Fo]more\[Fc].
"""


def test_a_page_is_read_paragraph_by_paragraph():
    assert list_paragraphs(PAGE) == [
        "NAME",
        "brk, sbrk - change data segment size",
        "RETURN VALUE",
        "On success, brk() returns zero ormore.",  # the macro sets its arguments without a space
        "ENOMEM",
        "No memory — see /proc/sys.",
        "A bullet 'quoted' and «more».",
    ]


def test_pages_are_paired_up_to_the_translators_names_and_only_at_equal_length():
    english = ["change data segment size", "same in both languages", "x"]
    german = ["Datensegmentgröße ändern", "same in both languages", "y", "ÜBERSETZUNG", "Von jemandem."]
    assert list(pair_paragraphs(english, german, LANGUAGES["de"])) == [(english[0], german[0])]
    assert list(pair_paragraphs(english[:2], german, LANGUAGES["de"])) == []
    assert list(pair_paragraphs(["short but long enough"], ["long " * 20], "")) == []


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def test_languages_and_code_are_written_with_every_tenth_page_held_out(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in range(20):
        text = f".SH NAME\nprogram number {number} of the list\n.PP\nit counts all the things {number}\n"
        write(raw, f"manpages-dev/usr/share/man/man2/p{number:02}.2.gz", text)
        write(raw, f"golang-1.19-src/usr/share/go-1.19/src/p{number:02}/a.go", f"package p{number}\n\nfunc f() {{}}\n")
        for language in LANGUAGES:
            (raw / f"manpages-{language}").mkdir(exist_ok=True)
            theirs = text.replace("program", f"Programm ({language})").replace("all the things", "all die Dinge")
            write(raw, f"manpages-{language}-dev/usr/share/man/{language}/man2/p{number:02}.2.gz", theirs)
    (raw / "manpages").mkdir()
    main(["--raw", str(raw), "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[0] == "de: 36 lines of train, 4 lines of test beside English"
    for language in LANGUAGES:
        for part, count in (("train", 36), ("test", 4)):
            lines = [(out / language / f"{part}.{name}.txt").read_text().splitlines() for name in ("en", language)]
            assert len(lines[0]) == len(lines[1]) == count
            assert [line.split()[-1] for line in lines[0]] == [line.split()[-1] for line in lines[1]]
    assert (out / "go/test.txt").read_text() == "package p0\n\nfunc f() {}\npackage p10\n\nfunc f() {}\n"
    assert len((out / "go/train.txt").read_text().splitlines()) == 18 * 3


def test_a_missing_package_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--raw", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "manpages-de is missing; run `python tools/fetch_data.py --set languages`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

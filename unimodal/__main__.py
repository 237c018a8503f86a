"""`python -m unimodal` is the `unimodal` command."""

from unimodal.cli.app import main

if __name__ == "__main__":
    main()

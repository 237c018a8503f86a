"""Adversarial losses of published codecs, with feature matching, in one backward pass (`adversarial.py` says how).

Of judges D_k with layers l, a sound x and what is decoded of it x̂:
- "dac" (arXiv 2306.06546): periods and bands of sounds without offset and at one loudness. Squares, added up:
  Σ_k E[(1 - D_k(x))²] + E[D_k(x̂)²] for the judges, Σ_k E[(1 - D_k(x̂))²] for the tokenizer; 2 · Σ_k,l E|D_kl(x) -
  D_kl(x̂)|.
- "encodec" (arXiv 2210.13438): spectra. Hinges, averaged: E[max(0, 1 - D(x))] + E[max(0, 1 + D(x̂))], E[max(0, 1 -
  D(x̂))]; the mean over k and l of E|D_kl(x) - D_kl(x̂)| / E|D_kl(x)|.
- "wavtokenizer" (arXiv 2408.16532, after Vocos): periods and resolutions. The same hinges, averaged over each kind of
  judges and added; Σ_l E|D_kl(x) - D_kl(x̂)|, judgements among them and the first layer of periods not, averaged
  likewise. WavTokenizer itself is trained by wavtokenizer+dac.

Shapes: B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, relu

from unimodal.tokenizers.losses.adversarial import find_adaptive_weight
from unimodal.tokenizers.losses.wave_judges import BandJudge, PeriodJudge, ResolutionJudge, SpectrumJudge

WaveForm = Literal["dac", "encodec", "wavtokenizer"]
PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (2048, 1024, 512)
#: how much matching counts beside the judgements
MATCHING: dict[str, float] = {"dac": 2.0, "encodec": 1.0, "wavtokenizer": 1.0}


class WaveJudges(nn.Module):
    """The judges of one form. width: of their first layer, by default the published one."""

    def __init__(self, form: WaveForm, width: int | None = None):
        super().__init__()
        self.form = form
        narrow = 32 if width is None else width
        groups: list[list[nn.Module]]
        if form == "dac":
            groups = [
                [
                    *(PeriodJudge(period, narrow, whole=True) for period in PERIODS),
                    *(BandJudge(window, narrow) for window in WINDOWS),
                ]
            ]
        elif form == "encodec":
            groups = [[SpectrumJudge(window, narrow) for window in (1024, 2048, 512)]]
        else:
            wide = 64 if width is None else width
            groups = [
                [PeriodJudge(period, narrow) for period in PERIODS],
                [ResolutionJudge(window, wide) for window in (1024, 2048, 512)],
            ]
        self.groups = nn.ModuleList(nn.ModuleList(group) for group in groups)

    def forward(self, x: Tensor) -> list[list[list[Tensor]]]:
        """[B, T] → for every group and judge the maps of its layers."""
        if self.form == "dac":
            x = x - x.mean(-1, keepdim=True)
            x = 0.8 * x / (x.abs().amax(-1, keepdim=True) + 1e-9)
        return [[judge(x) for judge in group] for group in self.groups if isinstance(group, nn.ModuleList)]

    def measure(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """made, real: [B, T] → losses of the judges, of the tokenizer, and of matching; scalars."""
        judging = generating = matching = made.new_zeros(())
        for group, of_made, of_real in zip(self.groups, self(made), self(real), strict=True):
            assert isinstance(group, nn.ModuleList)
            share = 1.0 if self.form == "dac" else 1 / len(of_made)
            for judge, a, b in zip(group, of_made, of_real, strict=True):
                if self.form == "dac":
                    judging = judging + share * (a[-1].square().mean() + (1 - b[-1]).square().mean())
                    generating = generating + share * (1 - a[-1]).square().mean()
                else:
                    judging = judging + share * (relu(1 - b[-1]).mean() + relu(1 + a[-1]).mean())
                    generating = generating + share * relu(1 - a[-1]).mean()
                matching = matching + share * self._match(judge, a, b)
        return judging, generating, matching

    def _match(self, judge: nn.Module, made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """The distance of one judge's maps."""
        compared = slice(0, -1)
        if self.form == "wavtokenizer":
            compared = slice(1 if isinstance(judge, PeriodJudge) else 0, None)
        apart = [l1_loss(a, b.detach()) for a, b in zip(made[compared], real[compared], strict=True)]
        if self.form != "encodec":
            return torch.stack(apart).sum()
        sizes = [b.detach().abs().mean().clamp_min(1e-8) for b in real[compared]]
        return torch.stack([error / size for error, size in zip(apart, sizes, strict=True)]).mean()


class WaveAdversarialLoss(nn.Module):
    """Judges of one or several forms. matching: weight of feature matching beside the judgements; None for each form's
    own. adaptive: whether the tokenizer's part is weighed by `find_adaptive_weight`, as none of the published is."""

    def __init__(
        self,
        forms: Sequence[WaveForm],
        width: int | None = None,
        matching: float | None = None,
        adaptive: bool = False,
    ):
        super().__init__()
        self.judges = nn.ModuleList(WaveJudges(form, width) for form in forms)
        self.matching, self.adaptive = matching, adaptive

    def forward(
        self, decoded: Tensor, made: Tensor, real: Tensor, reconstruction: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, float]]:
        """decoded and made: the same sounds [B, 1, T]; for the others see `AdversarialLoss`. → (loss for tokenizer and
        judges, numbers to log)."""
        shown = made.detach().float().requires_grad_()
        judging = generating = matching = total = real.new_zeros(())
        with torch.autocast(made.device.type, enabled=False):
            for judges in self.judges:
                assert isinstance(judges, WaveJudges)
                one, other, third = judges.measure(shown[:, 0], real.detach().float()[:, 0])
                share = MATCHING[judges.form] if self.matching is None else self.matching
                judging, generating, matching = judging + one, generating + other, matching + third
                total = total + other + share * third
        (slope,) = torch.autograd.grad(total, shown, retain_graph=True)
        numbers = {
            "generator": float(generating.detach()),
            "matching": float(matching.detach()),
            "judge": float(judging.detach()),
        }
        share_of_all = made.new_tensor(weight)
        if self.adaptive:
            found = find_adaptive_weight(reconstruction, made, slope)
            numbers["adaptive_weight"] = float(found)
            share_of_all = share_of_all * found
        linear = (slope * made).sum() * share_of_all
        # the value is the loss's own, the gradient that of `linear`
        return linear - linear.detach() + share_of_all * total.detach() + judging, numbers

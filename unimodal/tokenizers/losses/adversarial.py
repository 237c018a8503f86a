"""Adversarial training in one backward pass: a judge learns what is real while the tokenizer learns to pass for it.

Generator and judge are trained by one optimizer: the decoded medium is judged once, apart from the tokenizer's graph;
the gradient of the generator's loss with respect to it is taken there and handed on as a term that is linear in the
decoded medium. So neither loss reaches the other's weights, a step has one backward pass, and checkpoints,
accumulation and DDP need nothing of their own. The adaptive weight needs no second pass either: that gradient is
carried on to the last layer alone. What is given up is a learning rate of the judge's own, which the published
trainings set to the tokenizer's.

Shapes: B batch, C channels, K judgements of an item.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

Kind = Literal["hinge", "vanilla", "non_saturating"]
MOST = 1e4  # of the adaptive weight


def judge_loss(kind: Kind, real: Tensor, made: Tensor) -> Tensor:
    """What the judge learns by: half the sum of its losses for real and decoded items.

    hinge: E[max(0, 1 - D(x))] + E[max(0, 1 + D(x̂))] (arXiv 1705.02894). vanilla and non_saturating: the cross-entropy
    of D(x) with 1 and D(x̂) with 0 (arXiv 1406.2661).
    """
    if kind == "hinge":
        return 0.5 * (relu(1 - real).mean() + relu(1 + made).mean())
    return 0.5 * (softplus(-real).mean() + softplus(made).mean())


def generator_loss(kind: Kind, made: Tensor) -> Tensor:
    """What the tokenizer learns by: -E[D(x̂)], or -E[log σ(D(x̂))] for non_saturating.

    LlamaGen's code names the same but gives its cross-entropy the two arguments in the other order; the formula is
    followed here.
    """
    return softplus(-made).mean() if kind == "non_saturating" else -made.mean()


class LeCam(nn.Module):
    """LeCAM regularisation (Tseng et al., arXiv 2104.03310): judgements stay near the other kind's running mean."""

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("made", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, made: Tensor) -> None:
        """Takes the judgements [B, K] of a batch into the running means."""
        self.get_buffer("real").lerp_(real.mean().float(), 1 - self.decay)
        self.get_buffer("made").lerp_(made.mean().float(), 1 - self.decay)

    def forward(self, real: Tensor, made: Tensor) -> Tensor:
        """E[max(0, D(x) - α_made)²] + E[max(0, α_real - D(x̂))²] with the running means α."""
        return (
            relu(real - self.get_buffer("made")).square().mean() + relu(self.get_buffer("real") - made).square().mean()
        )


def find_last_weight(decoded: Tensor) -> Tensor | None:
    """The weight matrix or kernel nearest to the output in its graph: the decoder's last layer. None where none is
    trained."""
    nodes, seen = [decoded.grad_fn], set()
    while nodes:
        following = []
        for node in nodes:
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.name().endswith("AccumulateGrad"):
                variable = cast("_Leaf", node).variable
                if variable.dim() >= 2:
                    return variable
            following += [following_node for following_node, _ in node.next_functions]
        nodes = following
    return None


class _Leaf(torch.autograd.graph.Node):
    variable: Tensor


def find_adaptive_weight(reconstruction: Tensor, decoded: Tensor, slope: Tensor) -> Tensor:
    """λ = ‖∇_w reconstruction‖ / (‖∇_w generator‖ + 1e-4) of the decoder's last weight w (VQGAN, arXiv 2012.09841), in
    [0, 10⁴], without gradient. slope: the gradient of the generator's loss with respect to `decoded`."""
    weight = find_last_weight(decoded)
    if weight is None or not reconstruction.requires_grad:
        return decoded.new_ones(())
    (of_reconstruction,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (of_generator,) = torch.autograd.grad(decoded, weight, grad_outputs=slope, retain_graph=True)
    return (of_reconstruction.norm() / (of_generator.norm() + 1e-4)).clamp(0, MOST).detach()


class AdversarialLoss(nn.Module):
    """A judge, its loss and the tokenizer's. kind, lecam: as above; lecam 0 leaves the regulariser out. adaptive:
    whether the tokenizer's part is weighed by `find_adaptive_weight`."""

    def __init__(
        self, judge: nn.Module, kind: Kind = "hinge", adaptive: bool = True, lecam: float = 0.0, decay: float = 0.999
    ):
        super().__init__()
        self.judge, self.kind, self.adaptive, self.lecam = judge, kind, adaptive, lecam
        self.balance = LeCam(decay)

    def forward(
        self, decoded: Tensor, pictures: Tensor, real: Tensor, reconstruction: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, float]]:
        """→ (loss for both, numbers to log).

        decoded: what the tokenizer gave. pictures: made of it [B, 3, H, W], and real ones, as the judge takes them.
        reconstruction: scalar, what the tokenizer learns by beside; weight: of the tokenizer's part.
        """
        shown = pictures.detach().requires_grad_()
        judged_made, judged_real = self.judge(shown), self.judge(real.detach())
        made_part = generator_loss(self.kind, judged_made)
        judge_part = judge_loss(self.kind, judged_real, judged_made)
        (slope,) = torch.autograd.grad(made_part, shown, retain_graph=True)
        numbers = {"generator": float(made_part.detach()), "judge": float(judge_part.detach())}
        share = pictures.new_tensor(weight)
        if self.adaptive:
            found = find_adaptive_weight(reconstruction, pictures, slope)
            numbers["adaptive_weight"] = float(found)
            share = share * found
        linear = (slope * pictures).sum() * share
        if self.lecam:
            self.balance.update(judged_real, judged_made)
            judge_part = judge_part + self.lecam * self.balance(judged_real, judged_made)
        # the value is the loss's own, the gradient that of `linear`
        return linear - linear.detach() + share * made_part.detach() + judge_part, numbers

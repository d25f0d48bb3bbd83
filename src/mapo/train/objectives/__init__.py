"""Every loss: a pure function from the errors of p pairs to p losses, computed in float64.

ℓ is the error of one image (mean over its latent elements), w the chosen and l the rejected image. An objective that
compares is ``supervision + strength · (−log σ(logit))``; the logit stands as a function of its own, so that its scale
can be shown. Where a device has no float64 the few numbers travel to the CPU and back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mapo.train.types import PairErrors, PerPair, Residuals


def _double(errors: PerPair) -> PerPair:
    return errors.to("cpu" if errors.device.type == "mps" else errors.device, torch.float64)


class _LogX1(torch.autograd.Function):
    """log(x / (eˣ − 1)) and its derivative 1/x − 1/(1 − e⁻ˣ), both with their limits at 0 (0 and −1/2)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        tiny = x.abs() < 1e-5
        safe = torch.where(tiny, torch.ones_like(x), x)
        return torch.where(tiny, -x / 2, torch.log(safe / torch.expm1(safe)))

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        small = x.abs() < 1e-3  # the two terms cancel there: the series errs by less than x⁵/30240
        safe = torch.where(small, torch.ones_like(x), x)
        exact = 1 / safe + 1 / torch.expm1(-safe)
        series = -0.5 - x / 12 + x**3 / 720
        return grads[0] * torch.where(small, series, exact)


def score(errors: PerPair, snr: float = 1.0, power: float = 1.0) -> PerPair:
    """φ(ℓ) = (sℓ / (e^{sℓ} − 1))^power: 1 for a perfect image, falling to 0 as its error grows."""
    result: Tensor = torch.exp(power * _LogX1.apply(snr * errors))  # type: ignore[no-untyped-call]
    return result


def mapo_logit(errors: PairErrors, *, snr: float = 0.5, num_timesteps: int = 1000) -> PerPair:
    """T · (φ(ℓ_w) − φ(ℓ_l))."""
    return num_timesteps * (score(_double(errors.chosen), snr) - score(_double(errors.rejected), snr))


def mapo(errors: PairErrors, *, beta: float = 0.1, snr: float = 0.5, num_timesteps: int = 1000) -> PerPair:
    """MaPO as in the authors' public code (June 2024): ℓ_w − β · log σ(T · (φ_w − φ_l)).

    ``beta`` weighs the margin term, ``snr`` and ``num_timesteps`` set its reach.
    """
    logit = mapo_logit(errors, snr=snr, num_timesteps=num_timesteps)
    return _double(errors.chosen) - beta * F.logsigmoid(logit)


def mapo_aaai_logit(errors: PairErrors, *, beta: float = 8.0) -> PerPair:
    """φ_w^β − φ_l^β (arXiv:2406.06424v2, Eq. 9)."""
    return score(_double(errors.chosen), power=beta) - score(_double(errors.rejected), power=beta)


def mapo_aaai(errors: PairErrors, *, beta: float = 8.0) -> PerPair:
    """MaPO as in the AAAI paper: ℓ_w − (1/β) · log σ(φ_w^β − φ_l^β) (arXiv:2406.06424v2, Eqs. 9–11).

    That β is an exponent is a reading of a text whose formula layout was lost, and no code of this form is public;
    whether it also multiplies by T is unknown. ``beta``: 8 general, 32 culture, 64 style and safety in the paper.
    """
    return _double(errors.chosen) - F.logsigmoid(mapo_aaai_logit(errors, beta=beta)) / beta


def sft(errors: PairErrors) -> PerPair:
    """Fine-tuning on the chosen image alone: ℓ_w."""
    return _double(errors.chosen)


def _size(errors: PairErrors, floor: float) -> PerPair:
    return ((_double(errors.chosen) + _double(errors.rejected)) / 2 + floor).detach()


def mapo_relative_logit(errors: PairErrors, *, sharpness: float = 4.0, floor: float = 1e-3) -> PerPair:
    """γ · (ℓ_l − ℓ_w) / c: the margin in units of the pair's own error, c = ½ (ℓ_w + ℓ_l) + f held constant."""
    return sharpness * (_double(errors.rejected) - _double(errors.chosen)) / _size(errors, floor)


def mapo_relative(errors: PairErrors, *, beta: float = 2.0, sharpness: float = 4.0, floor: float = 1e-3) -> PerPair:
    """A form of our own: ℓ_w − β · (c/γ) · log σ(γ · (ℓ_l − ℓ_w) / c), with c = ½ (ℓ_w + ℓ_l) + f held constant.

    With g = σ(−γ (ℓ_l − ℓ_w) / c), in 0 … 1, the gradient is (1 + βg) ∇ℓ_w − βg ∇ℓ_l. So chosen always pulls harder
    than rejected pushes, ``beta`` bounds the push, and the push ends once the rejected error exceeds the chosen one
    by a share of their size that ``sharpness`` γ sets: at every timestep alike, although errors differ a hundredfold
    between timesteps. ``floor`` f keeps c above 0.
    """
    logit = mapo_relative_logit(errors, sharpness=sharpness, floor=floor)
    return _double(errors.chosen) - beta / sharpness * _size(errors, floor) * F.logsigmoid(logit)


def _drift(errors: PairErrors) -> PerPair:
    """Δ = (ℓ_w − ℓ_l) − (ref_w − ref_l): how much more the margin has grown than the reference's."""
    if errors.ref_chosen is None or errors.ref_rejected is None:
        raise ValueError("this objective needs the reference's errors")
    ours = _double(errors.chosen) - _double(errors.rejected)
    return ours - (_double(errors.ref_chosen) - _double(errors.ref_rejected))


def dpo_logit(errors: PairErrors, *, beta: float = 2000.0) -> PerPair:
    """−(β/2) · Δ (arXiv:2311.12908, Eq. 14)."""
    return -(beta / 2) * _drift(errors)


def dpo(errors: PairErrors, *, beta: float = 2000.0) -> PerPair:
    """Diffusion-DPO: −log σ(−(β/2) · ((ℓ_w − ℓ_l) − (ref_w − ref_l))) (arXiv:2311.12908, Eq. 14)."""
    return -F.logsigmoid(dpo_logit(errors, beta=beta))


def ipo_logit(errors: PairErrors) -> PerPair:
    """−Δ."""
    return -_drift(errors)


def ipo(errors: PairErrors, *, beta: float = 2000.0) -> PerPair:
    """IPO on denoising errors: (−Δ − 1/(2β))² (arXiv:2310.12036, with −Δ for the log ratios).

    The margin is to grow by 1/(2β) over the reference's, no less and no more.
    """
    return (ipo_logit(errors) - 1 / (2 * beta)) ** 2


def poly_dpo(errors: PairErrors, *, beta: float = 2000.0, alpha: float = 8.0) -> PerPair:
    """Poly-DPO: −log p + α (1 − p) with p = σ(−(β/2) · Δ) (ViPO, ICLR 2026).

    ``alpha`` above 0 attends less to pairs that are far from learned, as noisy labels are; below 0 more; 0 is DPO.
    """
    logit = dpo_logit(errors, beta=beta)
    return -F.logsigmoid(logit) + alpha * torch.sigmoid(-logit)


def orpo_logit(errors: PairErrors) -> PerPair:
    """ℓ_l − ℓ_w."""
    return _double(errors.rejected) - _double(errors.chosen)


def orpo(errors: PairErrors, *, beta: float = 0.1) -> PerPair:
    """ORPO on denoising errors: ℓ_w − β · log σ(ℓ_l − ℓ_w) (after arXiv:2403.07691).

    The sign is that of the paper. A public script for diffusion models has ℓ_w − ℓ_l inside, which lifts the chosen
    error.
    """
    return _double(errors.chosen) - beta * F.logsigmoid(orpo_logit(errors))


def agreement(residuals: Residuals) -> PerPair:
    """c: the mean of e_w · e_l over the elements of a pair's two images, without a gradient."""
    return (residuals.chosen * residuals.rejected).flatten(1).mean(1).detach()


def sdpo(errors: PairErrors, *, beta: float = 2000.0, mu: float = 0.6) -> PerPair:
    """Diffusion-DPO with the safeguard of SDPO (Diffusion-SDPO, arXiv:2511.03317).

    The gradient of ℓ_l is taken times λ = clip((1 − μ) · ℓ_w / c, 0, 1), and whole where c ≤ 0: what pushes the
    rejected image away is held back where it would push the chosen one too. c is :func:`agreement`, ``mu`` μ sets how
    much of the chosen image's descent is kept. λ is of each pair; the authors' code has one per micro-batch.
    """
    agree, rejected = _double(errors.extras["agreement"]), _double(errors.rejected)
    share = ((1 - mu) * _double(errors.chosen).detach() / agree).clamp(0, 1)
    share = torch.where(agree > 0, share, torch.ones_like(share))
    held_back = share * rejected + (1 - share) * rejected.detach()
    return dpo(replace(errors, rejected=held_back), beta=beta)


def kto_baseline(errors: PairErrors) -> dict[str, float]:
    """K: the mean of ref − ℓ over all images of a step, at least 0."""
    if errors.ref_chosen is None or errors.ref_rejected is None:
        raise ValueError("this objective needs the reference's errors")
    gains = [
        _double(errors.ref_chosen) - _double(errors.chosen),
        _double(errors.ref_rejected) - _double(errors.rejected),
    ]
    return {"baseline": max(0.0, float(torch.cat(gains).detach().mean()))}


def kto(errors: PairErrors, *, baseline: float, beta: float = 1000.0) -> PerPair:
    """Diffusion-KTO: ½ (1 − σ(β (ref_w − ℓ_w − K))) + ½ (1 − σ(−β (ref_l − ℓ_l − K))) (arXiv:2404.04465).

    Each image is judged alone, against the ``baseline`` K of its step (:func:`kto_baseline`). There is no ½ in front
    of ``beta``, as there is in DPO.
    """
    if errors.ref_chosen is None or errors.ref_rejected is None:
        raise ValueError("this objective needs the reference's errors")
    chosen = _double(errors.ref_chosen) - _double(errors.chosen) - baseline
    rejected = _double(errors.ref_rejected) - _double(errors.rejected) - baseline
    return (torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)) / 2


@dataclass(frozen=True)
class Objective:
    """One loss: ``loss`` from the errors of p pairs to p losses, its knobs being keyword arguments with defaults.

    ``logit`` is what stands inside log σ, where the objective compares; it takes some of the same knobs. ``extras`` are
    further numbers of each pair, from its residuals, which ``loss`` finds in ``errors.extras``. ``prepare``
    makes constants from the errors of all pairs of a step, over all processes; ``loss`` takes them as keyword
    arguments without defaults. ``needs_rejected`` is false where the loss of a pair whose preference is certain does
    not depend on the rejected image at all, which then need not be run. ``told`` says what each knob does.
    """

    loss: Callable[..., PerPair]
    logit: Callable[..., PerPair] | None = None
    needs_reference: bool = False
    needs_rejected: bool = field(default=True, kw_only=True)
    extras: Mapping[str, Callable[[Residuals], PerPair]] = field(default_factory=dict)
    prepare: Callable[[PairErrors], Mapping[str, float]] | None = None
    told: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The knobs and their defaults, whatever their author made them."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
        }


TO_REFERENCE = (
    "How soon a pair counts as learned, as its margin grows over the reference's. More stops sooner and keeps the "
    "model closer to the reference. One over an error."
)

OBJECTIVES: dict[str, Objective] = {
    "mapo": Objective(
        mapo, mapo_logit,
        told={
            "beta": "The weight of the margin beside the chosen picture's error. A number without a unit; 0 is `sft`.",
            "snr": "How fast the score of a picture falls with its error. One over an error.",
            "num_timesteps": "What the difference of both scores is multiplied by. A number without a unit; more lets "
            "the margin saturate sooner.",
        },
    ),
    "mapo_aaai": Objective(
        mapo_aaai, mapo_aaai_logit,
        told={"beta": "The exponent of the scores; one over it is the weight of the margin. A number without a unit."},
    ),
    "mapo_relative": Objective(
        mapo_relative, mapo_relative_logit,
        told={
            "beta": "The most that the rejected picture is pushed away, where 1 is the pull of the chosen one. A "
            "number without a unit.",
            "sharpness": "How soon the push ends, as the rejected error exceeds the chosen one. One over a share of "
            "their size; more ends it sooner.",
            "floor": "An error that is added to the size of a pair's errors, so that it is never 0. In the unit of "
            "errors.",
        },
    ),
    "sft": Objective(sft, needs_rejected=False),
    "dpo": Objective(dpo, dpo_logit, needs_reference=True, told={"beta": TO_REFERENCE}),
    "ipo": Objective(
        ipo, ipo_logit, needs_reference=True,
        told={"beta": "The margin is to grow by half of one over it, no less and no more. One over an error."},
    ),
    "poly_dpo": Objective(
        poly_dpo, dpo_logit, needs_reference=True,
        told={
            "beta": TO_REFERENCE,
            "alpha": "Above 0 it attends less to pairs that are far from learned, below 0 more; 0 is `dpo`. A number "
            "without a unit.",
        },
    ),
    "sdpo": Objective(
        sdpo, dpo_logit, needs_reference=True, extras={"agreement": agreement},
        told={
            "beta": TO_REFERENCE,
            "mu": "The share of the chosen picture's descent that is kept when the rejected one is pushed away, from "
            "0 to 1.",
        },
    ),
    "kto": Objective(
        kto, needs_reference=True, prepare=kto_baseline,
        told={"beta": "How soon a picture counts as learned, as its error leaves the reference's. One over an error."},
    ),
    "orpo": Objective(
        orpo, orpo_logit,
        told={
            "beta": "The weight of the margin beside the chosen picture's error. A number without a unit; 0 is `sft`.",
        },
    ),
}  # fmt: skip


def soft(objective: Objective, errors: PairErrors, preference: PerPair, **settings: float) -> PerPair:
    """p · L(w, l) + (1 − p) · L(l, w), where ``preference`` p is how sure it is that chosen is better.

    Swapping the pair negates the logit m, so this is p · log σ(m) + (1 − p) · log σ(−m) in the margin term and
    p · ℓ_w + (1 − p) · ℓ_l in the supervised one. At p = 1 it is the objective itself, at a tie (½) it is symmetric.
    """
    forth, back = objective.loss(errors, **settings), objective.loss(errors.swapped(), **settings)
    sure = preference.to(forth.device, torch.float64)
    return sure * forth + (1 - sure) * back


def logit_and_scale(objective: Objective, errors: PairErrors, settings: Mapping[str, float]) -> tuple[Tensor, PerPair]:
    """The logit of each pair and its scale: by how much it moves per unit of margin, at these errors."""
    chosen, rejected = (_double(e.detach()).requires_grad_() for e in (errors.chosen, errors.rejected))
    if objective.logit is None:
        return chosen.detach() * 0, chosen.detach() * 0
    known = inspect.signature(objective.logit).parameters
    with torch.enable_grad():
        here = replace(errors, chosen=chosen, rejected=rejected)
        logit = objective.logit(here, **{k: v for k, v in settings.items() if k in known})
        zero = (chosen + rejected).sum() * 0  # a user's own may leave one of the two out
        down, up = torch.autograd.grad(logit.sum() + zero, (chosen, rejected))
    return logit.detach(), (up - down) / 2

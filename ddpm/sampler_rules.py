"""Rules over the keys of IMAGE_GENERATION that say how a network becomes images."""

from ddpm.rules import Rule, RuleText, rule

_TIMESTEPS = "TRAINING.NETWORK.TIMESTEPS"
_GENERATE = "IMAGE_GENERATION."
# Spacings that walk whole timesteps alone.
WHOLE = ("trailing", "linspace")
# Samplers with the noise of eta 1.
_NOISY = ("ddpm", "dpmpp_2m_sde", "analytic")


@rule(_GENERATE + "NUM_STEPS", _TIMESTEPS, _GENERATE + "SPACING", is_impossible=True)
def steps_fit_spacing(num_steps: int | None, timesteps: int, spacing: str) -> RuleText:
    if num_steps is None or num_steps <= timesteps or spacing not in WHOLE:
        return None
    return (
        f"{_GENERATE}NUM_STEPS is {num_steps} but {_TIMESTEPS} is {timesteps}; "
        f"give a number of steps of at most {timesteps}, or SPACING logsnr or karras"
    )


@rule(_GENERATE + "SPACING", _TIMESTEPS, is_impossible=True)
def spacing_has_room(spacing: str, timesteps: int) -> RuleText:
    # With zero terminal SNR the grid goes from T - 1 to 1.
    if spacing in WHOLE or timesteps >= 3:
        return None
    return (
        f"{_GENERATE}SPACING is {spacing} but {_TIMESTEPS} is {timesteps}, with no room between "
        "the first and the last; give trailing, or at least 3 timesteps"
    )


@rule(_GENERATE + "REVERSE_STRIDE", _GENERATE + "SPACING")
def stride_is_trailing(stride: int | None, spacing: str) -> RuleText:
    if stride is None or spacing == "trailing":
        return None
    return (
        f"{_GENERATE}REVERSE_STRIDE is {stride} but SPACING is {spacing}, which spaces NUM_STEPS; "
        "give REVERSE_STRIDE null or SPACING trailing"
    )


@rule(_GENERATE + "NUM_STEPS", _GENERATE + "REVERSE_STRIDE")
def steps_or_stride(num_steps: int | None, stride: int | None) -> RuleText:
    if num_steps is None or stride is None:
        return None
    return (
        f"{_GENERATE}NUM_STEPS is {num_steps} and REVERSE_STRIDE is {stride}; give one of them, "
        "the other null"
    )


@rule(_GENERATE + "SAMPLER", _GENERATE + "DDIM_ETA")
def ddpm_has_eta_one(sampler: str, eta: float) -> RuleText:
    if sampler not in _NOISY or eta == 1.0:
        return None
    return (
        f"{_GENERATE}SAMPLER is {sampler} but DDIM_ETA is {eta}; give DDIM_ETA 1.0 or SAMPLER ddim"
    )


@rule(_GENERATE + "SAMPLER", _GENERATE + "DDIM_ETA")
def eta_belongs_to_ddim(sampler: str, eta: float) -> RuleText:
    # 1.0 is the default and 0.0 is what they do; anything between was meant for ddim.
    if sampler in ("ddim", *_NOISY) or eta in (0.0, 1.0):
        return None
    return (
        f"{_GENERATE}SAMPLER is {sampler}, which draws no noise, but DDIM_ETA is {eta}; "
        "give DDIM_ETA 0.0 or SAMPLER ddim"
    )


def _needs_guidance(key: str, off: object) -> Rule:
    @rule(_GENERATE + key, _GENERATE + "GUIDANCE")
    def guidance_is_on(value: object, guidance: float) -> RuleText:
        if value == off or guidance != 1.0:
            return None
        shown = list(value) if isinstance(value, tuple) else value
        return (
            f"{_GENERATE}{key} is {shown} but GUIDANCE is 1.0, which is off; "
            f"give GUIDANCE such as 2.0, or {key} {'null' if off is None else off}"
        )

    return guidance_is_on


@rule(_GENERATE + "GUIDANCE_INTERVAL")
def interval_rises(interval: tuple[float, float] | None) -> RuleText:
    if interval is None or interval[0] <= interval[1]:
        return None
    return (
        f"{_GENERATE}GUIDANCE_INTERVAL is {list(interval)}, which holds no log SNR; "
        "give the lower one first"
    )


@rule(_GENERATE + "DYNAMIC_THRESHOLD", _GENERATE + "CLIP_DENOISE")
def threshold_needs_clipping(percentile: float | None, clips: bool) -> RuleText:
    if percentile is None or clips:
        return None
    return (
        f"{_GENERATE}DYNAMIC_THRESHOLD is {percentile} but CLIP_DENOISE is false, so nothing is "
        "clipped; give CLIP_DENOISE true or DYNAMIC_THRESHOLD null"
    )


@rule(_GENERATE + "RECOMPUTE_NOISE", _GENERATE + "CLIP_DENOISE")
def recomputing_needs_clipping(recomputes: bool, clips: bool) -> RuleText:
    if recomputes or clips:
        return None
    return (
        f"{_GENERATE}RECOMPUTE_NOISE is false but CLIP_DENOISE is false too, so there is nothing "
        "to recompute; give RECOMPUTE_NOISE true or CLIP_DENOISE true"
    )


SAMPLER_RULES = (
    steps_fit_spacing,
    spacing_has_room,
    stride_is_trailing,
    steps_or_stride,
    ddpm_has_eta_one,
    eta_belongs_to_ddim,
    _needs_guidance("GUIDE", None),
    _needs_guidance("GUIDANCE_INTERVAL", None),
    _needs_guidance("GUIDANCE_RESCALE", 0.0),
    interval_rises,
    threshold_needs_clipping,
    recomputing_needs_clipping,
)

from collections.abc import Callable

from .diffusion import NoiseSchedule as NoiseSchedule
from .diffusion import UNet as UNet
from .diffusion import q_sample as q_sample
from .sampling import ddim_step as ddim_step
from .sampling import reverse_timesteps as reverse_timesteps
from .sampling import sample as sample
from .sampling import sample_images as sample_images
from .sampling import sample_steps as sample_steps
from .training import DiffusionModel as DiffusionModel

def attach(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]: ...

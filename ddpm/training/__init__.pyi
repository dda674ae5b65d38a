from .fit import DiffusionModel as DiffusionModel
from .step import Stepper as Stepper
from .step import exact_parts as exact_parts
from .trainer import Tracker as Tracker
from .trainer import steps_per_epoch as steps_per_epoch
from .trainer import total_steps as total_steps
from .worker import Job as Job
from .worker import work as work

from . import wandb_log as wandb_log
from . import wandb_report as wandb_report
from .tensorboard import write_events as write_events
from .wandb_log import wandb_problems as wandb_problems
from .wandb_log import wandb_tracker as wandb_tracker

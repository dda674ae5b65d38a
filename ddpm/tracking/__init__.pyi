from . import wandb_log as wandb_log
from . import wandb_report as wandb_report
from .wandb_log import wandb_tracker as wandb_tracker

from .tensorboard import write_events as write_events
from .wandb_log import has_wandb_key as has_wandb_key
from .wandb_log import wandb_problems as wandb_problems
from .wandb_log import wandb_tracker as wandb_tracker
from .wandb_report import publish_report as publish_report

"""Moved: to `restore` and `trainer`. This file goes when nothing imports it any more."""

from ramp.model.loss import next_token_loss as next_token_loss
from ramp.train.restore import init_template as init_template
from ramp.train.restore import load_params as load_params
from ramp.train.restore import model_identity as model_identity
from ramp.train.trainer import Trainer as Trainer
from ramp.train.trainer import lower_train_step as lower_train_step

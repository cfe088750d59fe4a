"""Reading an experiment: YAML, presets and `key.sub=value` overrides into strict pydantic models."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration section: unknown keys are errors, values never change after validation.

    A section lives beside the component that it configures, with a docstring under each field that gives its unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

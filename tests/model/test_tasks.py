"""A configuration says what its model is for."""

import pytest
import transformers
from transformers import AutoConfig, BertConfig, LlamaConfig, ViTConfig

from bmscale.model.config import option_types
from bmscale.model.sizes import count_parameters
from bmscale.model.tasks import TASKS, model_class, task_of


@pytest.mark.parametrize("name", TASKS)
def test_a_task_knows_its_model(name, tmp_path):
    task = TASKS[name]
    config = task.configure(hidden_size=32, num_attention_heads=2)
    assert task_of(config) is task
    assert model_class(config) is task.model
    config.save_pretrained(tmp_path)
    assert task_of(AutoConfig.from_pretrained(tmp_path)) is task
    assert getattr(transformers, task.auto_class)._model_mapping is task.classes
    assert task.writes == task.model.can_generate()
    for preset in task.presets.values():
        assert set(preset) <= set(option_types(task.config))
        for size in task.sizes.values():
            assert set(size) <= set(option_types(task.config))
            assert count_parameters(task.configure(**{**preset, **size})).total > 0


def test_without_a_named_class_it_is_the_first_task_that_fits():
    assert task_of(TASKS["masked_lm"].config()) is TASKS["masked_lm"]
    assert task_of(TASKS["language_model"].config()) is TASKS["language_model"]


def test_models_of_transformers_have_tasks_too():
    assert task_of(LlamaConfig(architectures=["LlamaForCausalLM"])) is TASKS["language_model"]
    assert task_of(BertConfig(architectures=["BertForSequenceClassification"])) is TASKS["classification"]
    with pytest.raises(ValueError, match="no task has a model of configuration ViTConfig"):
        task_of(ViTConfig())

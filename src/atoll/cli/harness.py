"""Tasks of lm-evaluation-harness, from a folder of this machine. Needs the package `lm-eval`."""

import os
from contextlib import chdir
from pathlib import Path
from typing import Final

from msgspec import Struct

from atoll.cli.show import progress
from atoll.errors import ConfigError
from atoll.talk.harness import HarnessModel
from atoll.talk.source import Speaker

OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
FEWSHOT_SEED: Final = 1234  # the harness's own
RESAMPLES: Final = 1000  # for the standard error of what is no mean (the harness's least number)


class Score(Struct, frozen=True, kw_only=True):
    task: str
    metric: str  # with its filter, if it has one
    value: float
    stderr: float | None  # None: the metric has none


def scores_of(speaker: Speaker, *, tasks: list[str], folder: Path) -> list[Score]:
    """Return how a model does in tasks whose YAML files are in a folder, or in folders therein.

    Files that they name in `data_files` are looked for from that folder. Their `!function` is code.

    Raises:
        ConfigError: lm-eval is not installed, there is no such task, or its data are not here.
    """
    os.environ |= OFFLINE  # read when the libraries are imported
    try:
        from datasets.exceptions import DatasetsError
        from lm_eval.api.model import LM
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "the package lm-eval is not installed", hint="pip install 'atoll[eval]'"
        ) from error
    LM.register(HarnessModel)
    with chdir(folder):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if unknown := sorted(set(tasks) - set(manager.all_tasks)):
            raise ConfigError(
                f"no such task in {folder}: {', '.join(unknown)}",
                hint=f"there are: {', '.join(manager.all_tasks) or 'none'}",
            )
        try:
            loaded = manager.load(tasks)
        except (OSError, DatasetsError) as error:  # a file is missing, or the hub was asked
            raise ConfigError(
                f"cannot read the data of a task from this machine: {error}",
                hint="`dataset_path: json`, and `data_files` in `dataset_kwargs`, name local files",
            ) from error
        for task in loaded["tasks"].values():  # as the harness's own command does
            task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
            task.set_fewshot_seed(FEWSHOT_SEED)
        model = HarnessModel(speaker, note=progress("tasks", of="requests"))
        done = evaluate(model, task_dict=loaded, bootstrap_iters=RESAMPLES, log_samples=False)
    return scores_in(done["results"])


def scores_in(results: dict[str, dict[str, object]]) -> list[Score]:
    """Return the numbers in the harness's results, whose keys are `metric,filter`."""
    found = []
    for task, values in results.items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not isinstance(value, float) or not chosen or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            found.append(
                Score(
                    task=task,
                    metric=metric if chosen == "none" else f"{metric} ({chosen})",
                    value=float(value),  # some are numpy's, of which JSON knows nothing
                    stderr=float(stderr) if isinstance(stderr, float) else None,
                )
            )
    return found

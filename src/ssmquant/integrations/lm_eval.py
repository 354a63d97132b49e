"""Run our models in lm-evaluation-harness (the extra `ssmquant[tasks]`).

    from ssmquant.integrations.lm_eval import run_tasks
    run_tasks(model, ["lambada_openai", "piqa"], limit=200)

`SsmquantLM` is also registered with the harness as "ssmquant", so that its own entry points take
`model="ssmquant", model_args={"pretrained": FOLDER_OR_ID}` once this module is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from ssmquant.errors import DataError, InputError, ModelError, nearest
from ssmquant.eval.continuations import Continuation, score_continuations
from ssmquant.eval.protocols import Logits

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise InputError(
        f"tasks were asked for, which lm-evaluation-harness runs, and {error.name!r} is not installed; "
        "run: pip install 'ssmquant[tasks]'"
    ) from error

__all__ = ["SsmquantLM", "TextModel", "run_tasks"]

# A standard error within 2 %. The harness's 100,000 resamples in Python take minutes for 5,000 passages.
_BOOTSTRAP_ITERS = 1000
_SAMPLING = {"temperature", "top_k", "top_p", "repetition_penalty"}


class TextModel(Logits, Protocol):
    """What tasks need of a model; `ssmquant.load` and `ssmquant.quantize` return one."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer (of transformers), or None."""

    def generate(
        self,
        prompt: list[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        repetition_penalty: float = ...,
        stop: Sequence[str] = ...,
    ) -> list[str]:
        """Return the continuation of each prompt, without the prompt."""


@register_model("ssmquant")
class SsmquantLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """The harness's view of a model.

    State-space models have no longest context. `max_length` cuts the contexts of scored continuations on the
    left and sets the windows of rolling perplexity, the length of published Mamba results.
    """

    def __init__(
        self,
        pretrained: str | Path | TextModel,
        *,
        batch_size: int | str = 4,
        max_length: int = 2048,
        max_gen_toks: int = 256,
    ) -> None:
        """Wrap a model.

        Args:
            pretrained: a model, or what `ssmquant.load` takes.
            batch_size: requests in a forward pass (the harness may hand over a string).
            max_length: longest input in tokens.
            max_gen_toks: most tokens to generate where a task sets none.

        Raises:
            ModelError: the model has no tokenizer, or its tokenizer no end-of-text token.
            InputError: the batch size is not a number.
        """
        super().__init__()
        self.model = _load(pretrained) if isinstance(pretrained, str | Path) else pretrained
        self.tokenizer = self.model.tokenizer
        if self.tokenizer is None or self.tokenizer.eos_token_id is None:
            missing = "a tokenizer" if self.tokenizer is None else "an end-of-text token in its tokenizer"
            raise ModelError(
                f"tasks were asked of {self.model.name}, which lacks {missing}; load it with tokenizer=…"
            )
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise InputError(f"tasks: a batch size of {batch_size!r} was asked for; use a number from 1 up")
        self.batch_size = int(batch_size)
        self.max_length = max_length
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without context."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokenise; by default with the special tokens that the tokenizer adds, but no second BOS."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None and bos and string.startswith(bos):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score continuations after contexts; silent, unlike the harness's default."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self._score((context, target) for _, context, target in requests)
        for (key, *_tokens), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", key, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Score whole texts, each token once, in windows of `max_length` tokens."""
        totals = [0.0] * len(requests)
        owners: list[int] = []
        windows: list[tuple[list[int], list[int]]] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for window in rolling:
                owners.append(index)
                windows.append(make_disjoint_window(window))
        for owner, (logprob, _) in zip(owners, self._score(windows), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Continue each context until a stop string, the end-of-text token or the most tokens."""
        texts: dict[int, str] = {}
        end = self.tokenizer.decode([self.eot_token_id])
        order = sorted(range(len(requests)), key=lambda index: repr(requests[index].args[1]))
        for _, group in groupby(order, key=lambda index: repr(requests[index].args[1])):
            indices = list(group)
            options = normalize_gen_kwargs(requests[indices[0]].args[1], self.max_gen_toks)
            stop = handle_stop_sequences(options.pop("until", None), eos=end)
            sampling = _sampling(options)
            for start in range(0, len(indices), self.batch_size):
                chunk = indices[start : start + self.batch_size]
                prompts = [requests[index].args[0] for index in chunk]
                generated = self.model.generate(
                    prompts, max_new_tokens=options["max_gen_toks"], stop=stop, **sampling
                )
                for index, text in zip(chunk, generated, strict=True):
                    texts[index] = postprocess_generated_text(text, stop, think_end_token=None)
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
        return [texts[index] for index in range(len(requests))]

    def _score(self, requests: Iterable[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        # The last token is predicted but not read, so context and target may be max_length + 1 together.
        pairs = [
            Continuation(
                tuple(context[max(0, len(context) + len(target) - self.max_length - 1) :]), tuple(target)
            )
            for context, target in requests
        ]
        scores = score_continuations(self.model, pairs, batch=self.batch_size)
        return [(score.logprob, score.greedy) for score in scores]


def run_tasks(
    model: TextModel,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 4,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness.

    Args:
        model: what `ssmquant.load` or `ssmquant.quantize` returned.
        tasks: names of tasks, groups or tags.
        include_path: folder with further task files (YAML). The harness's own are only read when a name is
            not there.
        limit: items of each task, for a quick look.
        batch_size: requests in a forward pass.

    Returns:
        The harness's own results, plain data: "results" {task: {"METRIC,FILTER": value,
        "METRIC_stderr,FILTER": …}}, "versions", "n-shot", "n-samples", "higher_is_better", and "groups" where
        a group was asked for.

    Raises:
        InputError: an unknown task or an unsupported generation option.
        DataError: the text of a task cannot be had.
        ModelError: the model cannot run tasks.
    """
    lm = SsmquantLM(model, batch_size=batch_size)
    manager = _task_manager(tasks, include_path)
    try:
        with redirect_stdout(sys.stderr):  # the harness reports progress by print
            found = simple_evaluate(
                lm,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                batch_size=batch_size,
                log_samples=False,
                bootstrap_iters=_BOOTSTRAP_ITERS,
            )
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"tasks {', '.join(tasks)} were asked for and their text was not found: {error}; connect to the "
            "network, or give task files that name local text with include_path"
        ) from error
    kept = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
    return {key: found[key] for key in kept if key in found}


def _task_manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """Return the smallest index that holds all tasks: reading the harness's 14,000 takes ten seconds."""
    if not tasks:
        raise InputError("tasks: at least one name is needed, none was given")
    path = None if include_path is None else str(include_path)
    if path is not None:
        if not Path(path).is_dir():
            raise InputError(
                f"tasks: the folder of task files {path} was named and is not there; check the path"
            )
        manager = TaskManager(include_path=path, include_defaults=False)
        if set(tasks) <= set(manager.all_subtasks):
            return manager
    manager = TaskManager(include_path=path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise InputError(
            f"tasks: {unknown[0]!r} is none of the {len(manager.all_tasks):,} known tasks; "
            f"{nearest(unknown[0], manager.all_tasks)}"
        )
    return manager


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    """Return the sampling options in our names, which are the harness's; refuse what we do not have."""
    unknown = sorted(set(options) - _SAMPLING - {"do_sample", "max_gen_toks"})
    if unknown:
        raise InputError(
            f"tasks: a task asks for the generation option {unknown[0]!r}; known: "
            f"{', '.join(sorted(_SAMPLING))}; change its task file"
        )
    return {name: options[name] for name in _SAMPLING & set(options)}


def _load(pretrained: str | Path) -> TextModel:
    import ssmquant

    model: TextModel = ssmquant.load(pretrained)
    return model

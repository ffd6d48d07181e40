"""``lm_eval:task``: local tasks, offline, against log-likelihoods added up by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lines import LinesError
from mergekit_lines.evaluate import Settings, check_apart, measure_all, parse_evaluators
from tests.evaluate.conftest import one

QUESTIONS = [
    {"q": f"w{i} w{i + 3}", "choices": [f"w{i + 1}", f"w{2 * i} w{i}", "w9 w8 w7"], "gold": i % 3}
    for i in range(6)
]


def test_without_the_harness_the_extra_is_named(tmp_path: Path) -> None:
    """Where it cannot be imported, the error says what to install."""
    (tmp_path / "lm_eval.py").write_text("raise ImportError('no such thing')\n")
    code = (
        "from mergekit_lines.evaluate import parse_evaluators, Settings\n"
        "(it,) = parse_evaluators(['lm_eval:arc_easy'], 'test', Settings())\n"
        "try: it.identity()\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == (
        "[lines] lm_eval:arc_easy: lm-evaluation-harness is not installed (ImportError: no such "
        "thing). Install it with `pip install 'mergekit-lines[eval]'`.\n"
    ), done.stderr


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("lm_eval:a,,b", "found the tasks 'a,,b', wanted different names joined by commas."),
        ("lm_eval:a,a", "found the tasks 'a,a', wanted different names"),
        ("lm_eval:a?include_path=absent", "include_path absent is no folder."),
        ("lm_eval:a?num_fewshot=x", "num_fewshot is 'x', wanted a whole number of at least 0"),
    ],
)
def test_specs_that_are_wrong_at_sight(here: Any, spec: str, text: str) -> None:
    """They are refused without the harness."""
    with pytest.raises(LinesError) as caught:
        one(spec)
    assert text in caught.value.message


# --- with the harness ----------------------------------------------------------------------


@pytest.fixture
def tasks(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two multiple-choice tasks, a rolling one, a group of two with an aggregate, and a tag."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, lines in (("test", QUESTIONS[:4]), ("valid", QUESTIONS[4:]), ("shots", QUESTIONS)):
        here(f"data/{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    common = """
        dataset_path: json
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: choices
        doc_to_target: gold
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
        """
    here("tasks/_common", common)
    for name in ("test", "valid"):
        here(
            f"tasks/mc_{name}.yaml",
            f"""
            task: mc-{name}
            tag: both_mc
            include: _common
            process_docs: !function utils.keep
            test_split: test
            dataset_kwargs:
              data_files:
                test: {tmp_path}/data/{name}.jsonl
                train: {tmp_path}/data/shots.jsonl
            """,
        )
    here("tasks/utils.py", "def keep(docs):\n    return docs\n")
    here(
        "tasks/group.yaml",
        """
        group: all_mc
        task: [mc-test, mc-valid]
        aggregate_metric_list:
          - {metric: acc, weight_by_size: true}
        """,
    )
    here(
        "tasks/rolling.yaml",
        f"""
        task: rolling
        dataset_path: json
        output_type: loglikelihood_rolling
        test_split: test
        doc_to_text: ""
        doc_to_target: "{{{{q}}}}"
        metric_list:
          - metric: word_perplexity
          - metric: byte_perplexity
        dataset_kwargs: {{data_files: {{test: {tmp_path}/data/test.jsonl}}}}
        """,
    )
    return tmp_path / "tasks"


def likelihood(model: Any, tokenizer: Any, context: str, text: str) -> float:
    """Return log p(text | context) in float64."""
    first = tokenizer.convert_tokens_to_ids(context.split())
    then = tokenizer.convert_tokens_to_ids(text.split())
    with torch.no_grad():
        logits = model(torch.tensor([first + then])).logits[0].double().log_softmax(-1)
    return sum(logits[len(first) - 1 + i, token].item() for i, token in enumerate(then))


def right(model: Any, tokenizer: Any, questions: list[Any]) -> list[float]:
    """Return 1 for each question whose answer is the likeliest choice."""
    scores = []
    for question in questions:
        found = [likelihood(model, tokenizer, question["q"], c) for c in question["choices"]]
        scores.append(float(found.index(max(found)) == question["gold"]))
    return scores


def test_accuracy_is_that_of_likelihoods_by_hand(tasks: Path, model: Any, tokenizer: Any) -> None:
    """Of a local task, by name with _; twice the same, and the model as it was."""
    evaluator = one("lm_eval:mc-test,mc-valid", include_path=tasks, batch_size=3)
    assert {*right(model, tokenizer, QUESTIONS)} == {0.0, 1.0}  # the oracle tells them apart
    tied, padding = model.tie_weights, tokenizer.padding_side
    found = measure_all([evaluator], model, tokenizer)
    assert {name: metric.examples for name, metric in found.items()} == {
        "mc_test": tuple(right(model, tokenizer, QUESTIONS[:4])),
        "mc_valid": tuple(right(model, tokenizer, QUESTIONS[4:])),
    }
    assert all(m.value == sum(m.examples) / len(m.examples) for m in found.values())
    assert all(m.higher_is_better for m in found.values())
    assert model.tie_weights == tied
    assert tokenizer.padding_side == padding
    assert evaluator.measure(model, tokenizer) == found


def test_a_group_is_one_metric_and_a_tag_its_tasks(tasks: Path, model: Any, tokenizer: Any) -> None:
    """A group with an aggregate has its value, with all examples; a given name goes before."""
    found = one(f"lm_eval:all_mc?include_path={tasks}").measure(model, tokenizer)
    want = right(model, tokenizer, QUESTIONS)
    assert list(found) == ["all_mc"]
    assert found["all_mc"].value == pytest.approx(sum(want) / 6)
    assert found["all_mc"].examples == tuple(want)
    tag = one("x=lm_eval:both_mc", include_path=tasks).measure(model, tokenizer)
    assert list(tag) == ["x_mc_test", "x_mc_valid"]
    alone = one("x=lm_eval:mc-test?limit=2", include_path=tasks).measure(model, tokenizer)
    assert {name: metric.examples for name, metric in alone.items()} == {"x": tuple(want[:2])}


def test_another_metric_of_a_task(tasks: Path, model: Any, tokenizer: Any) -> None:
    """A perplexity has no scores whose mean it is; a metric that is not there is told."""
    spec = "lm_eval:rolling?metric="
    found = one(f"{spec}byte_perplexity", include_path=tasks).measure(model, tokenizer)
    assert not found["rolling"].higher_is_better
    assert found["rolling"].examples is None
    default = one("lm_eval:rolling", include_path=tasks).measure(model, tokenizer)
    named = one(f"{spec}word_perplexity,none", include_path=tasks).measure(model, tokenizer)
    assert default == named != found
    with pytest.raises(LinesError) as caught:
        one(f"{spec}word_perplexty", include_path=tasks).measure(model, tokenizer)
    assert (
        "the task rolling has no metric 'word_perplexty'. Did you mean 'word_perplexity'? It has: "
        "word_perplexity,none, byte_perplexity,none." in caught.value.message
    )


def test_few_shot_examples(tasks: Path, model: Any, tokenizer: Any) -> None:
    """They are seeded: the same at each point."""
    evaluator = one("lm_eval:mc-test?num_fewshot=2", include_path=tasks)
    first = evaluator.measure(model, tokenizer)
    assert evaluator.measure(model, tokenizer) == first
    assert evaluator.identity()["options"]["num_fewshot"] == 2


def test_what_it_hangs_on_is_told(tasks: Path) -> None:
    """The YAML, what it includes, its functions' file, and data: measured on, and the rest."""
    identity = one("lm_eval:mc-test", include_path=tasks).identity()

    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    data = tasks.parent / "data"
    assert identity["data"] == {str(data / "test.jsonl"): sha256(data / "test.jsonl")}
    files = {name: sha256(tasks / name) for name in ("_common", "mc_test.yaml", "utils.py")}
    files[str(data / "shots.jsonl")] = sha256(data / "shots.jsonl")
    assert identity["code"] == files
    assert identity["tasks"] == ["mc-test"]
    assert identity["options"] == {
        "limit": None,
        "num_fewshot": None,
        "batch_size": 8,
        "metric": None,
        "seed": 0,
    }
    group = one("lm_eval:all_mc", include_path=tasks).identity()
    assert set(group["code"]) == {*files, "group.yaml", "mc_valid.yaml"}
    assert group["tasks"] == ["mc-test", "mc-valid"]


def test_an_offloaded_model(
    tasks: Path, tmp_path: Path, sharp: Path, model: Any, tokenizer: Any
) -> None:
    """With its weights on disk it is measured where it runs."""
    from accelerate import disk_offload

    offloaded = AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.float32)
    disk_offload(offloaded, tmp_path / "offload", execution_device=torch.device("cpu"))
    evaluator = one("lm_eval:mc-test", include_path=tasks)
    assert evaluator.measure(offloaded, tokenizer) == evaluator.measure(model, tokenizer)


def test_a_tokenizer_without_padding_is_given_none(tasks: Path, model: Any, sharp: Path) -> None:
    """The harness sets a padding token; not in the tokenizer of the sweep."""
    tokenizer = AutoTokenizer.from_pretrained(sharp, pad_token=None)
    assert tokenizer.pad_token is None
    one("lm_eval:mc-test", include_path=tasks).measure(model, tokenizer)
    assert tokenizer.pad_token is None


def test_leaks_of_tasks(tasks: Path, here: Any, model: Any, tokenizer: Any) -> None:
    """One task, one in a group, one file under two names, and examples known once measured."""
    settings = Settings(include_path=tasks)

    def check(validation: str, test: str, *, measured: bool = False) -> None:
        left = parse_evaluators([validation], "validation", settings)
        right = parse_evaluators([test], "test", settings)
        if measured:
            measure_all(left, model, tokenizer)
            measure_all(right, model, tokenizer)
        check_apart(left, right)

    check("lm_eval:mc-valid", "lm_eval:mc-test", measured=True)
    with pytest.raises(LinesError, match=r"\(test\): both measure the task mc-test. What is"):
        check("lm_eval:mc-test", "lm_eval:all_mc")
    text = (tasks / "mc_test.yaml").read_text()
    here("tasks/twin.yaml", text.replace("task: mc-test", "task: twin"))
    with pytest.raises(LinesError, match=r"both read the file .*test\.jsonl"):
        check("lm_eval:mc-test", "lm_eval:twin")
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS[3:])
    other = here("data/other.jsonl", lines)
    text = text.replace(str(tasks.parent / "data" / "test.jsonl"), str(other))
    here("tasks/other.yaml", text.replace("task: mc-test", "task: other"))
    check("lm_eval:mc-test", "lm_eval:other")  # their documents are not known yet
    with pytest.raises(LinesError, match=r"1 example is in both, of 4 and 3\."):
        check("lm_eval:mc-test", "lm_eval:other", measured=True)
    assert one("lm_eval:other", include_path=tasks).digests() is None


def test_what_is_missing(tasks: Path, model: Any, here: Any, tokenizer: Any) -> None:
    """A task nobody knows, its data, and a tokenizer."""
    with pytest.raises(LinesError) as caught:
        one("lm_eval:mc_test", include_path=tasks).identity()
    assert f"there is no task mc_test in lm-evaluation-harness nor below {tasks}. Did you mean" in (
        caught.value.message
    )
    assert "?include_path=FOLDER adds a folder with task YAMLs." in caught.value.message
    with pytest.raises(
        LinesError, match=r"arc_easy: .* could not load a task or its data \(.*ffline"
    ):
        one("lm_eval:arc_easy", include_path=tasks).identity()
    here("tasks/mc_test.yaml", (tasks / "mc_test.yaml").read_text() + "num_fewshot: 0\n")
    with pytest.raises(LinesError, match=r"mc-test is defined with 0. Leave the option out, or"):
        one("lm_eval:mc-test?num_fewshot=1", include_path=tasks).identity()
    with pytest.raises(LinesError, match=r"the model has no tokenizer"):
        one("lm_eval:mc-test", include_path=tasks).measure(model, None)
    (tasks.parent / "data" / "test.jsonl").unlink()
    with pytest.raises(
        LinesError, match=r"lm-evaluation-harness could not load a task or its data \(File"
    ):
        one("lm_eval:mc-test", include_path=tasks).identity()

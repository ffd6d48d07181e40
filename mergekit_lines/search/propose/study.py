"""Trials that Optuna proposes one after another, none lost and none measured twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lines.errors import LinesError
from mergekit_lines.search.measuring.early import limits_of
from mergekit_lines.search.propose.space import Choice, Dimension, Space
from mergekit_lines.search.propose.storage import UNREADABLE, without_password, working_with

SAMPLERS = ("tpe", "cmaes", "nsga2", "random")
POPULATION = 10  # of NSGA-II: Optuna's 50 is more than most searches have trials
# What a trial says of itself, beside what Optuna keeps.
OWNER_KEY, AGAIN_KEY, PROBLEM_KEY = "folder", "again", "problem"


@dataclass(frozen=True)
class Proposal:
    """Values that were proposed and are to be measured.

    Attributes:
        number: of the trial in its study.
        values: by name of the dimension.
        trial: Optuna's.
    """

    number: int
    values: Mapping[str, Any]
    trial: Any


@dataclass(frozen=True)
class Trial:
    """A trial that has its scores, one for each objective, higher is better."""

    number: int
    values: Mapping[str, Any]
    scores: tuple[float, ...]


class Study:
    """The trials of one space, in one storage.

    The sampler is seeded by the number of each trial, and all of a proposal is stored at once, so
    that an interrupted search goes on as one that was not interrupted.

    Args:
        name: of the study in its storage.
        space: what is proposed.
        goals: number of objectives.
        sampler: one of ``SAMPLERS``.
        seed: of the proposals.
        storage: Optuna's, open.
        url: its own, for errors.
        owner: of this search's trials; None where all in the storage are its own.

    Raises:
        LinesError: the storage cannot be read or written.
    """

    def __init__(
        self,
        name: str,
        space: Space,
        goals: int,
        sampler: str,
        seed: int,
        storage: Any,
        url: str,
        owner: str | None,
    ) -> None:
        import optuna

        self._space, self._sampler, self._seed = space, sampler, seed
        self._url, self._owner = url, owner
        with working_with(url):
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=["maximize"] * goals,
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),  # see _proposed for what proposes
                pruner=optuna.pruners.NopPruner(),
            )

    @property
    def begun(self) -> bool:
        """Whether any trial is there."""
        return bool(self._trials())

    def _trials(self, *states: str) -> list[Any]:
        """Return the trials in these states, or all, without those that another one repeats."""
        with working_with(self._url, *UNREADABLE):
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state.name == "COMPLETE":  # whole, whoever edited the database
                    self._space.values(trial.params)
        repeated = {trial.user_attrs.get(AGAIN_KEY) for trial in trials}
        return [
            trial
            for trial in trials
            if trial.number not in repeated and (not states or trial.state.name in states)
        ]

    def coming(self, total: int) -> Iterator[Proposal]:
        """Yield what is to be measured, until there are so many trials in the study.

        First what was being measured when an earlier run ended, then what failed in it, with the
        same values; then new ones. Each is proposed when it is asked for, by what was told
        until then.
        """
        with working_with(self._url):
            unfinished = [trial for trial in self._trials("RUNNING") if self._is_own(trial)]
            for trial in self._trials("FAIL"):
                if self._is_own(trial):
                    again = {AGAIN_KEY: trial.number, **self._owned()}
                    self._study.enqueue_trial(trial.params, user_attrs=again)
        for trial in unfinished:
            yield self._again(trial)
        while self._trials("WAITING") or len(self._trials()) < total:
            yield self._new()

    def _is_own(self, trial: Any) -> bool:
        return self._owner is None or trial.user_attrs.get(OWNER_KEY) == self._owner

    def _again(self, trial: Any) -> Proposal:
        import optuna

        with working_with(self._url):
            return self._proposal(optuna.Trial(self._study, trial._trial_id))

    def _new(self) -> Proposal:
        with working_with(self._url):
            if not self._trials("WAITING"):
                self._study.add_trial(self._proposed())
            trial = self._study.ask()
            if self._owner is not None:
                trial.set_user_attr(OWNER_KEY, self._owner)
            return self._proposal(trial)

    def _proposed(self) -> Any:
        """Return a trial with all its values, as the sampler proposes it by those that are there.

        It is made in memory: values that are stored one by one, as Optuna does by itself, hang on
        where an interrupted run had stopped between them.
        """
        import optuna
        from optuna.trial import TrialState

        memory = optuna.storages.InMemoryStorage()
        with working_with(self._url, *UNREADABLE):
            trials = self._study.get_trials(deepcopy=True)
            number = memory.create_new_study(self._study.directions, "copy")
            for trial in trials:
                if trial.state == TrialState.WAITING:  # another machine's, that asks would take
                    trial.state = TrialState.RUNNING
                memory.create_new_trial(number, template_trial=trial)
        study = optuna.load_study(
            study_name="copy", storage=memory, sampler=self._seeded(len(trials))
        )
        trial = study.ask()
        values = {one.name: _suggest(trial, one) for one in self._space.dimensions}
        # What the sampler notes of a trial is of use to the later ones.
        notes = memory.get_trial_system_attrs(trial._trial_id)
        return optuna.trial.create_trial(
            state=TrialState.WAITING,
            user_attrs=self._owned(),
            system_attrs={**notes, "fixed_params": values},
        )

    def _owned(self) -> dict[str, str]:
        # Whatever is in the database has an owner, who takes it up again.
        return {} if self._owner is None else {OWNER_KEY: self._owner}

    def _proposal(self, trial: Any) -> Proposal:
        proposed = {one.name: _suggest(trial, one) for one in self._space.dimensions}
        return Proposal(trial.number, self._space.values(proposed), trial)

    def _seeded(self, number: int) -> Any:
        """Return the sampler for one trial; two machines shall not propose the same."""
        import optuna

        text = f"{self._seed} {number}" + (f" {self._owner}" if self._owner else "")
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % (2**31)
        match self._sampler:
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def limits(self) -> dict[int, float]:
        """Return the scores below which a trial is given up, by number of the step."""
        return limits_of([trial.intermediate_values for trial in self._trials("COMPLETE")])

    def tell(
        self,
        proposal: Proposal,
        scores: Sequence[float] | None,
        problem: str = "",
        partials: Sequence[float | None] = (),
        *,
        pruned: bool = False,
    ) -> None:
        """Keep what a trial came to; no scores for one that could not be measured or scored."""
        from optuna.trial import TrialState

        with working_with(self._url):
            for step, partial in enumerate(partials):
                if partial is not None:
                    proposal.trial.report(partial, step)
            if pruned:
                self._study.tell(proposal.trial, state=TrialState.PRUNED)
            elif scores is None:
                proposal.trial.set_user_attr(PROBLEM_KEY, problem)
                self._study.tell(proposal.trial, state=TrialState.FAIL)
            else:
                self._study.tell(proposal.trial, list(scores))

    def complete(self) -> list[Trial]:
        """Return the trials that have scores, in the order of their numbers."""
        return [
            Trial(trial.number, self._space.values(trial.params), tuple(trial.values))
            for trial in self._trials("COMPLETE")
        ]

    def pruned(self) -> int:
        """Return how many trials were given up."""
        return len(self._trials("PRUNED"))

    def importances(self, goal: int) -> dict[str, float]:
        """Return the share of each dimension in how an objective varies; none of too few trials.

        Source: PED-ANOVA, arXiv 2304.10255.
        """
        import optuna

        trials = self._trials("COMPLETE")
        if len(trials) < 4 or len({trial.values[goal] for trial in trials}) < 2:
            return {}
        with working_with(self._url):
            shares = optuna.importance.get_param_importances(
                self._study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                target=lambda trial: trial.values[goal],
            )
        return dict(shares)


def _suggest(trial: Any, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(dimension.name, dimension.values)
    low, high = dimension.low, dimension.high
    if dimension.kind == "int":
        return trial.suggest_int(dimension.name, int(low), int(high))
    return trial.suggest_float(dimension.name, low, high, log=dimension.kind == "log")


def study_name(kind: str, described: Mapping[str, Any]) -> str:
    """Return the name of a study: what it is of, and a digest of what its scores hang on."""
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_sampler(sampler: str, space: Space, goals: int) -> None:
    """Refuse a sampler that cannot propose points of this space for so many objectives.

    Raises:
        LinesError: says which can.
    """
    ranges = [one for one in space.dimensions if not isinstance(one, Choice)]
    if sampler == "cmaes" and (goals > 1 or len(ranges) < max(2, len(space.dimensions))):
        raise LinesError(
            f"--sampler cmaes: found {goals} objective{'s' * (goals > 1)}, {len(ranges)} ranges "
            f"and {len(space.dimensions) - len(ranges)} choices, wanted one objective and two "
            f"ranges or more, without choices: that is what CMA-ES proposes. Take tpe."
        )
    if sampler not in SAMPLERS:
        raise LinesError(f"--sampler: found {sampler!r}, wanted one of {', '.join(SAMPLERS)}.")


def check_begun(study: Study, url: str) -> None:
    """Refuse to begin a search that was to go on.

    Raises:
        LinesError: there is none.
    """
    if not study.begun:
        raise LinesError(
            f"--resume: {without_password(url)} holds no trial of this recipe, with these keys, "
            f"ranges, evaluators and objectives. Look at --out and --set, or leave --resume out "
            f"to begin."
        )

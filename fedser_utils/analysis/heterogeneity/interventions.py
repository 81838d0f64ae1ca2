"""Interventions for heterogeneous clients: each is a small change of a run's settings.

An intervention is trained as a separate run and compared with the same run without it. Most are
from the literature: FedProx (Li et al., 2020), server momentum (Hsu et al., 2019), FedAdam (Reddi
et al., 2021), local batch normalisation (FedBN, Li et al., 2021), group normalisation (Wu and He,
2018; Hsieh et al., 2020). The others are the settings that one would change first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedser_utils.core.errors import InputError, choose
from fedser_utils.core.settings import EXECUTION, IDENTITY, STRATEGIES, Settings

Changes = dict[str, Any]
BASELINE = "as given"


def _always(**changes: Any) -> Callable[[Settings], Changes]:
    return lambda settings: changes


def _strategy(name: str, **options: Any) -> Callable[[Settings], Changes]:
    """Change the strategy; options of the present one alone return to Flower's defaults."""
    return lambda settings: (
        dict.fromkeys(STRATEGIES[settings.strategy]) | {"strategy": name} | options
    )


INTERVENTIONS: Mapping[str, Callable[[Settings], Changes]] = {
    BASELINE: _always(),
    "optimiser state reset": _always(client_state="reset"),
    "kept optimiser state": _always(client_state="keep"),
    "FedProx": _strategy("FedProx", proximal_mu=0.01),
    # Flower's momentum is torch's: a steady update grows to learning rate / (1 - momentum) of
    # itself, here to its own length. Hsu et al.'s 0.9 with Flower's rate of 1 makes it ten times
    # as long, and looks back over ten rounds, which is much where there are a few dozen
    "FedAvgM": _strategy("FedAvgM", server_momentum=0.5, server_learning_rate=0.5),
    # Flower's eta of 0.1 may move each weight by 0.1 a round, which is more than most weights
    "FedAdam": _strategy("FedAdam", eta=0.01, tau=1e-3),
    "local batch norm": _always(batch_norm="local"),
    "re-estimated batch norm": _always(batch_norm="reestimate"),
    "group norm": _always(norm="group", batch_norm="average"),
    "smaller learning rate": lambda settings: {"learning_rate": 0.3 * settings.learning_rate},
    "decaying learning rate": lambda settings: {  # the last round has a tenth of the first's
        "learning_rate_decay": 0.1 ** (1 / max(1, settings.rounds - 1))
    },
    "more local epochs": lambda settings: {"local_epochs": 2 * settings.local_epochs},
    "half of the clients": lambda settings: {"fraction_train": settings.fraction_train / 2},
    "standardised per corpus": _always(standardisation="corpus"),
    "standardised per client": _always(standardisation="client"),
    "level rms": _always(level="rms"),
}

# obstacle -> the interventions against it
AGAINST: Mapping[str, tuple[str, ...]] = {
    "drift": (
        "FedProx", "FedAvgM", "FedAdam", "optimiser state reset", "kept optimiser state",
        "smaller learning rate", "decaying learning rate",
    ),
    "batch norm": ("local batch norm", "re-estimated batch norm", "group norm"),
    "input": ("standardised per corpus", "standardised per client", "level rms"),
}  # fmt: skip


def apply(settings: Settings, name: str) -> Settings:
    """Return the settings with one intervention. Raises InputError for an unknown one, and if
    these settings do not allow it."""
    choose("intervention", name, tuple(INTERVENTIONS))
    return dataclasses.replace(settings, **INTERVENTIONS[name](settings))


def changes(settings: Settings, name: str) -> Changes:
    """Return the settings that an intervention changes, with their new values."""
    return differences(settings, apply(settings, name))


def differences(before: Settings, after: Settings) -> Changes:
    """Return the settings that change a result and differ, with their values in ``after``; model
    and seed do not count."""
    old, new = before.values(), after.values()
    left_out = {*EXECUTION, *IDENTITY}
    return {k: v for k, v in new.items() if k not in left_out and v != old[k]}


def describe(changed: Mapping[str, Any]) -> str:
    """Return e.g. ``strategy FedProx, proximal_mu 0.01``, without options left to Flower."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in changed.items()
        if value is not None
    )


def applicable(settings: Settings) -> list[str]:
    """Return "as given" and the interventions that these settings allow and that change them."""
    names = [BASELINE]
    for name in INTERVENTIONS:
        if name == "standardised per corpus" and len(settings.corpora) == 1:
            continue
        try:
            names += [name] if changes(settings, name) else []
        except InputError:
            continue
    return names


def select(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return "as given" and the interventions of these names; "all": the ``applicable`` ones.
    Raises InputError for an unknown name, and for one that these settings do not allow."""
    if "all" in names:
        return applicable(settings)
    for name in names:
        choose("intervention", name, ("all", *INTERVENTIONS))
        apply(settings, name)
    return list(dict.fromkeys([BASELINE, *names]))


def recognise(baseline: Settings, settings: Settings) -> str | None:
    """Return the intervention that turns ``baseline`` into ``settings``; None if there is none."""
    for name in [BASELINE, *applicable(baseline)[1:]]:
        if not differences(apply(baseline, name), settings):
            return name
    return None


def find_baseline(settings: Iterable[Settings]) -> Settings:
    """Return the settings that are one intervention away from most of the others. Raises InputError
    without any."""
    every = list(settings)
    if not every:
        raise InputError("no settings to choose a baseline from")
    return max(every, key=lambda one: sum(recognise(one, other) is not None for other in every))

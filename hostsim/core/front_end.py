"""Numba's front end without work done over and over: a quarter of what compiling takes.

Numba finds the type of a call by trying every overload of the function, for every call anew and
once more a pass over the types; compares compiler flags option by option; colours messages of
overloads that did not fit; analyses an inlined helper again for each call of it; and takes times.
What comes out is the same: tests/hostsim/core/test_front_end.py compares machine code.
"""

from typing import Any

from numba.core import errors, event, inline_closurecall, targetconfig, types

_errors: Any = errors
_events: Any = event
_BaseFunction: Any = types.BaseFunction
_InlineWorker: Any = inline_closurecall.InlineWorker
_TargetConfig: Any = targetconfig.TargetConfig
_ConfigStack: Any = targetconfig.ConfigStack


def _remember_call_types() -> None:
    """Try the overloads of a function once for each list of argument types."""
    find = _BaseFunction.get_call_type

    def get_call_type(self: Any, context: Any, args: Any, kws: dict[str, Any]) -> Any:
        known = vars(self).setdefault("call_types", {})
        call = (context, tuple(args), tuple(kws.items()), _ConfigStack.top_or_none())
        if call not in known:
            known[call] = find(self, context, args, kws)  # raises if no overload fits
        return known[call]

    _BaseFunction.get_call_type = get_call_type


def _changed_options(flags: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    options = flags.options
    return {name: v for name, v in flags._values.items() if v != options[name].default}


def _compare_flags_by_changes() -> None:
    """Let flags be equal, and hash alike, by the few options that were set."""

    def equal(self: Any, other: Any) -> Any:
        if not isinstance(other, _TargetConfig):
            return NotImplemented
        if self._values == other._values:
            return True
        return _changed_options(self) == _changed_options(other)

    _TargetConfig.__eq__ = equal
    _TargetConfig.__hash__ = lambda self: hash(frozenset(_changed_options(self)))


def _leave_messages_plain() -> None:
    """Do not colour messages, of which nearly all are thrown away."""
    scheme = getattr(_errors, "HighlightColorScheme", None)  # absent without colorama
    if scheme:
        scheme._markup = lambda _self, message, _color=None, _style=None: message


def _analyse_inlined_once() -> None:
    """Keep what numba finds out about a helper before it copies it into a caller."""
    analysed: dict[Any, Any] = {}

    def inline_function(
        self: Any, caller: Any, block: Any, at: int, function: Any, types_of_arguments: Any = None
    ) -> Any:
        self.flags.enable_ssa = False  # the caller's, as numba leaves them: part of its symbol
        call = (function, self.flags.copy())
        if call not in analysed:
            analysed[call] = self.run_untyped_passes(function)
        free = function.__code__.co_freevars  # what was found is copied by inline_ir
        return self.inline_ir(caller, block, at, analysed[call], free, types_of_arguments)

    _InlineWorker.inline_function = inline_function


def shorten() -> None:
    """Change numba's front end, in this process."""
    _remember_call_types()
    _compare_flags_by_changes()
    _leave_messages_plain()
    _analyse_inlined_once()
    _events.start_event = _events.end_event = lambda *_, **__: None  # timers nobody reads

"""Objects of a message that are not there yet are asked for often, instead of after one, two, four seconds.

Flower 1.41 announces a message before its parts are uploaded. Whoever pulls it (the ServerApp, the relay) then
meets parts that are "not yet available" and waits a second and more for each, in which a small model has long
arrived. The waits are defaults of keyword arguments, which are replaced here: private behaviour, pinned by
`tests/flower_contract` (docs/adr/0007).
"""

from typing import Final

FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 0.5
TRIES: Final = (
    400  # times half a second: just over the 180 s that Flower gives an upload before it is void
)
CHANGED: Final = {
    "initial_backoff": FIRST_WAIT_S,
    "backoff_cap": LONGEST_WAIT_S,
    "max_tries_per_object": TRIES,  # a site that stalls in mid-upload must not hold the round for ever
}


def pull_promptly() -> None:
    """Change the waits of this process's pulls.

    Raises:
        RuntimeError: Flower has other names than those of 1.41.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for function in (
        inflatable_utils.pull_objects,
        inflatable_utils.pull_and_inflate_object_from_tree,
    ):
        defaults = function.__kwdefaults__ or {}
        if not CHANGED.keys() <= defaults.keys():
            raise RuntimeError("this Flower version cannot be made to pull promptly")
        defaults.update(CHANGED)

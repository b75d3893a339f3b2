"""The errors a user can meet: one line each, naming the thing, the fact and the remedy."""


class OnnxqatError(Exception):
    """The work could not be done: exit status 1 on the command line."""


class InputError(OnnxqatError, ValueError):
    """The call, a model, a configuration or data given by the user is wrong: exit status 2."""


class UnsupportedModelError(InputError):
    """The model holds something this tool cannot handle; the message names every node concerned."""


class TrainingError(OnnxqatError):
    """Training could not go on; the last good state is kept."""


class LostProcessError(TrainingError):
    """Another process of the run has died or does not answer."""


class DropError(OnnxqatError):
    """A deployed model is worse than its float model by more than is allowed; it is written all the same."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra that brings it."""

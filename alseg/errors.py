"""The errors that a user can act on."""


class AlsegError(Exception):
    """Something the user can mend: bad data, a bad setting, a missing device.

    The message is one clear sentence that names the file or the setting and what is allowed. Entry
    points print it without a traceback and end with exit code 2; set ``ALSEG_TRACEBACK=1`` to see
    where it was raised.
    """


class DataError(AlsegError):
    """A file or a folder of the data set is missing, broken or contradicts another one."""


class ConfigError(AlsegError):
    """A setting is missing, out of range, or contradicts another one."""


class ScoringError(AlsegError):
    """A case got no usable acquisition score."""

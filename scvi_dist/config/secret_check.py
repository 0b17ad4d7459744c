"""A run file is copied, printed and recorded: no secret may stand in it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from scvi_dist.config.sections import RunConfig
from scvi_dist.data.filesystem import redact_url, refuse_secrets
from scvi_dist.errors import ConfigError

_SECRET = re.compile(
    r"key|secret|token|password|passwd|pwd|credential|signature|connection_string|^sig$|(^|_)sas($|_)",
    re.I,
)
_WAY = (
    "It would be copied to the output folder and to whoever runs it. Give it by an environment "
    "variable of all hosts, or by the configuration file of the service."
)


def looks_secret(name: str) -> bool:
    """Whether a variable or an option of this name holds a secret."""
    return _SECRET.search(name) is not None


def refuse_secrets_in(config: RunConfig) -> None:
    """Raise :class:`ConfigError` where a value of the run is or holds a secret; it is not shown."""
    data = config.data
    for url in [data.store] if isinstance(data.store, str) else data.store:
        refuse_secrets(url, data.storage_options)
        _refuse_query("data.store", url)
    uri = config.tracking.uri
    _refuse_query("tracking.uri", uri)
    if "://" in uri and urlsplit(uri).password:
        raise ConfigError(
            f"tracking.uri: {redact_url(uri)} is given with a password. {_WAY} (MLflow reads "
            "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN.)"
        )
    for key, mapping in (
        ("train.ray.env_vars", config.train.ray.env_vars),
        ("tracking.tags", config.tracking.tags),
    ):
        for name in _names(mapping):
            if looks_secret(name):
                raise ConfigError(f"{key}: {name!r} looks like a secret. {_WAY}")


def _refuse_query(key: str, url: str) -> None:
    if "://" not in url:
        return
    for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if looks_secret(name):
            raise ConfigError(
                f"{key}: {redact_url(url)} is followed by {name}=…, which looks like a secret. "
                f"{_WAY}"
            )


def _names(tree: Mapping[str, Any]) -> Iterator[str]:
    for name, value in tree.items():
        yield name
        if isinstance(value, Mapping):
            yield from _names(value)

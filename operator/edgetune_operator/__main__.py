"""`python -m edgetune_operator`: the operator process."""

import logging
import sys

import kopf

from edgetune_contract.values.text import escaped
from edgetune_operator.api.profiles.profile import InvalidProfiles, load_profiles
from edgetune_operator.process.settings import parse_settings
from edgetune_operator.process.watches import Watcher


def escape_record(record: logging.LogRecord) -> bool:
    """Escape what a terminal would obey in a log record: messages repeat what Pods and Events say."""
    record.msg, record.args = escaped(record.getMessage()), None
    return True


def main() -> None:
    """Run the operator until it is stopped."""
    settings = parse_settings()
    try:
        profiles = load_profiles(settings.profiles)
    except InvalidProfiles as error:
        sys.exit(f"edgetune: {error}")
    kopf.configure(
        verbose=settings.verbose, log_format=kopf.LogFormat.JSON if settings.log_json else kopf.LogFormat.FULL
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(escape_record)
    for verbose_logger in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(verbose_logger).setLevel(logging.DEBUG if settings.verbose else logging.WARNING)
    registry = kopf.OperatorRegistry()
    Watcher(settings, profiles).register(registry)
    kopf.run(
        registry=registry,
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )


if __name__ == "__main__":
    main()

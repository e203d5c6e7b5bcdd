"""The settings of a topic that say when brokers delete messages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from thinrow.core.kafka import load_kafka
from thinrow.errors import UsageError
from thinrow.online.topic.settings import client_settings, make_client

if TYPE_CHECKING:
    from collections.abc import Mapping

    from thinrow.online.topic.settings import TopicAddress, TopicSettings

__all__ = ["check_cleanup", "refuse_compacted"]

log = logging.getLogger("thinrow.online")

DESCRIBE_TIMEOUT_S = 10.0
"""Longest wait for the topic's settings."""


def check_cleanup(settings: TopicSettings) -> int:
    """Checks that the topic keeps its messages for as long as a hand-over may take.

    Returns:
        How long the topic keeps messages, ms; 0 for ever, or if the brokers do not say.

    Raises:
        UsageError: The topic deletes messages sooner than that, or as of `refuse_compacted`.
    """
    found = refuse_compacted(settings)
    if found.get("retention.bytes", "-1") != "-1":
        log.warning(
            "the topic deletes messages by their bytes, however new they are",
            extra={"retention.bytes": found["retention.bytes"]},
        )
    kept_ms = int(found.get("retention.ms") or -1)
    if 0 <= kept_ms < settings.retention_ms:
        raise UsageError(
            f"Topic {settings.topic} keeps messages for {kept_ms} ms (retention.ms), which is less "
            f"than --retention of {settings.retention_ms} ms, the time that a hand-over may take; "
            f"let the topic keep them for longer."
        )
    return max(kept_ms, 0)


def refuse_compacted(settings: TopicAddress) -> Mapping[str, str | None]:
    """Returns the topic's settings, or none and a warning in the log if the brokers do not say.

    Raises:
        UsageError: The brokers compact the topic: they keep the last message of each user, and
            drop those before, so that a later reader would have other histories.
    """
    found = _described(settings)
    policy = found.get("cleanup.policy")
    if policy is None:
        log.warning(
            "the brokers do not say what the topic deletes; check that its cleanup.policy is "
            "delete, and its retention.ms longer than --retention"
        )
        return {}
    if "compact" in policy:
        raise UsageError(
            f"Topic {settings.topic} has cleanup.policy {policy}, with which the brokers drop "
            f"events of users who have newer ones; set it to delete, and rebuild a topic that was "
            f"compacted already from its producers."
        )
    return found


def _described(settings: TopicAddress) -> Mapping[str, str | None]:
    """Returns the topic's settings; none if the brokers do not say."""
    kafka = load_kafka()
    from confluent_kafka import admin as administration

    made: Any = administration  # whose types hide what it exports
    trouble: list[Any] = []
    admin: Any = make_client(
        made.AdminClient,
        client_settings(settings.bootstrap_servers, settings.connection),
        trouble.append,
    )
    resource = made.ConfigResource(made.ResourceType.TOPIC, settings.topic)
    [described] = admin.describe_configs([resource], request_timeout=DESCRIBE_TIMEOUT_S).values()
    try:
        return {name: entry.value for name, entry in described.result().items()}
    except kafka.KafkaException as error:
        log.warning("the topic's settings cannot be read", extra={"reason": error.args[0].str()})
        return {}

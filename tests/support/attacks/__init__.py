"""Attacks on the API: a table of what is tried, and of what refuses it."""

from support.attacks.by_users import BY_USERS
from support.attacks.through_spec import THROUGH_SPEC
from support.attacks.with_token import WITH_TOKEN

ATTACKS = (*THROUGH_SPEC, *WITH_TOKEN, *BY_USERS)

"""Decisions on values only: observe, plan, render, status, events. May import api and the contract; does no I/O."""

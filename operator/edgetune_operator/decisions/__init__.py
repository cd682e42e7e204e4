"""Decisions on values only: observe, plan, render, status, events."""

"""Decisions on values only: observe, plan, render, status, events. Imports api and the contract; no I/O, no clock."""

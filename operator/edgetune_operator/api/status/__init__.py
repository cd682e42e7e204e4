"""The status of a LoraFineTune. The CRD and the field reference come from here."""

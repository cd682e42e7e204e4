"""What the next passes would do, found by letting `plan` decide on values. It may import what decisions may."""

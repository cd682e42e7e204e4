"""`kubectl edgetune`: a plugin of kubectl, which calls kubectl and uses its access to the cluster."""

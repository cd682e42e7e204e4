"""Profiles: settings of the platform team, which users select by name.

profile     a profile, and the file that has them
resources   what its containers request
queue       its Kueue queue
gpu_split   GPUs of a training over nodes
gpu_use     prices and limits of GPU time
tenants     which namespaces may use it
tracking    its MLflow server
"""

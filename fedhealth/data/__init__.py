"""Cohorts: files to tensors, data contract, patient-level splits."""

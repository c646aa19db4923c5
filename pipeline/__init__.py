"""The method of DeltaEdit and what it is measured by: networks, training, editors, evaluation, report."""

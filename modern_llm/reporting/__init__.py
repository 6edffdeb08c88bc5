"""Run records to tables, pictures and pages. Reads only what runs leave on disk, so any run can be reported on later."""

"""Tables, pictures and pages: reads only what runs leave on disk, so any run can be reported on later."""

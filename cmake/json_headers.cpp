// Compiled so that json_headers.h is: see Targets.cmake.

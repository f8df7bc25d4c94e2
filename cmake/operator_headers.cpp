// Compiled so that operator_headers.h is: see Targets.cmake.

// Compiled so that torch_headers.h is: see Targets.cmake.

// Compiled so that tensor_headers.h is: see Targets.cmake.

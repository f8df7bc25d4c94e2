// Of the program test_headers, which exists for its precompiled headers (tests/CMakeLists.txt).

#pragma once
/// \file
/// Marks what libpaperlab.so exports; everything else is hidden.

#define PAPERLAB_API __attribute__((visibility("default")))

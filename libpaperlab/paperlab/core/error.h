#pragma once
/// \file
/// The error types of the library. A message reads "module::function: what was required, got what
/// came".

#include <stdexcept>
#include <string>

#include "paperlab/core/export.h"

namespace paperlab {

/// Base of every error that the library throws on purpose.
class PAPERLAB_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A tensor or array has the wrong number of dimensions or the wrong sizes.
class PAPERLAB_API ShapeError : public Error {
 public:
  using Error::Error;
};

/// An element type is not one that the function accepts.
class PAPERLAB_API DTypeError : public Error {
 public:
  using Error::Error;
};

/// Operands live on different devices, or on one that the function does not serve.
class PAPERLAB_API DeviceError : public Error {
 public:
  using Error::Error;
};

/// A value lies outside what the function accepts.
class PAPERLAB_API ValueError : public Error {
 public:
  using Error::Error;
};

/// The request is valid but this build or machine cannot serve it.
class PAPERLAB_API UnsupportedError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused a file operation (missing, not writable, disk full).
class PAPERLAB_API IoError : public Error {
 public:
  explicit IoError(const std::string& message, int code = 0) : Error(message), code_(code) {}

  int code() const { return code_; }  ///< errno, or 0 where it is not known

 private:
  int code_;
};

/// A CUDA call failed.
class PAPERLAB_API CudaError : public Error {
 public:
  using Error::Error;
};

/// Throws E with the message "<function>: <required>, got <got>" unless `condition` holds.
template <class E>
void require(bool condition, const char* function, const std::string& required,
             const std::string& got) {
  if (!condition) {
    throw E(std::string(function) + ": " + required + ", got " + got);
  }
}

}  // namespace paperlab

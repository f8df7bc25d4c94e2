#pragma once
// Work that is recorded as a CUDA graph instead of done. Whatever fails on the way, the stream is
// left as it was: no capture goes on, no graph is left over and no error waits for the next call.
// No CUDA header: `Api` makes the calls, so that tests can let each of them fail.

#include <string>

#include "paperlab/core/error.h"

namespace paperlab::kernels {

// Api has
//   Graph, Executable                    handles; default values are none
//   std::string begin()                  an empty text, or what went wrong; likewise
//   std::string end(Graph&)
//   std::string instantiate(Graph, Executable&)
//   void destroy(Graph)
//   void clear_error()                   of the last call, if it left one
// Returns the executable graph of what body() enqueues. Throws CudaError "<function>: ..." if a
// call or a launch of body() fails; other exceptions of body() as they are.
template <class Api, class Body>
typename Api::Executable captured(Api& api, const char* function, Body body) {
  typename Api::Graph graph = {};
  const auto give_up = [&] {
    if (graph != typename Api::Graph{}) {
      api.destroy(graph);
    }
    api.clear_error();
  };
  const auto check = [&](const std::string& problem) {
    if (!problem.empty()) {
      give_up();
      throw CudaError(std::string(function) + ": steps must be captured as a CUDA graph, got " +
                      problem);
    }
  };
  check(api.begin());
  std::string problem_of_body;
  try {
    body();
  } catch (const CudaError& error) {
    problem_of_body = error.what();
  } catch (...) {
    api.end(graph);
    give_up();
    throw;
  }
  const std::string problem_of_end = api.end(graph);
  check(problem_of_body.empty() ? problem_of_end : problem_of_body);
  typename Api::Executable executable = {};
  check(api.instantiate(graph, executable));
  api.destroy(graph);
  return executable;
}

}  // namespace paperlab::kernels

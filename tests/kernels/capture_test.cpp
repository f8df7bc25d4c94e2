// A capture that fails leaves nothing behind, whichever of its calls fails.

#include "kernels/common/cuda/capture.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace paperlab::kernels {
namespace {

// CUDA's calls as they follow one another; the one named `failing` fails.
struct Calls {
  using Graph = int;
  using Executable = int;

  std::string failing = {};
  std::vector<std::string> log = {};
  bool is_capturing = false;
  int num_graphs = 0;

  std::string did(const std::string& call) {
    log.push_back(call);
    return call == failing ? call + " failed" : std::string();
  }
  std::string begin() {
    std::string problem = did("begin");
    is_capturing = problem.empty();
    return problem;
  }
  // A capture that is broken ends with an error and without a graph.
  std::string end(Graph& graph) {
    is_capturing = false;
    std::string problem = did("end");
    graph = problem.empty() ? 7 : 0;
    num_graphs += problem.empty() ? 1 : 0;
    return problem;
  }
  std::string instantiate(Graph graph, Executable& executable) {
    std::string problem = did("instantiate");
    executable = problem.empty() ? graph + 1 : 0;
    return problem;
  }
  void destroy(Graph graph) {
    EXPECT_EQ(graph, 7);
    --num_graphs;
    did("destroy");
  }
  void clear_error() { did("clear_error"); }
};

using Log = std::vector<std::string>;

template <class Body>
std::string message_of(Calls& calls, Body body) {
  try {
    captured(calls, "op_cuda", body);
  } catch (const CudaError& error) {
    return error.what();
  }
  return "";
}

TEST(CaptureTest, GivesTheExecutableAndDestroysTheGraph) {
  Calls calls;
  EXPECT_EQ(captured(calls, "op_cuda", [&] { calls.did("body"); }), 8);
  EXPECT_EQ(calls.log, (Log{"begin", "body", "end", "instantiate", "destroy"}));
  EXPECT_EQ(calls.num_graphs, 0);
}

TEST(CaptureTest, EveryCallThatFailsLeavesNothingBehind) {
  const std::vector<std::pair<std::string, Log>> all = {
      {"begin", {"begin", "clear_error"}},
      {"end", {"begin", "body", "end", "clear_error"}},
      {"instantiate", {"begin", "body", "end", "instantiate", "destroy", "clear_error"}}};
  for (const auto& [failing, log] : all) {
    Calls calls{.failing = failing};
    EXPECT_EQ(message_of(calls, [&] { calls.did("body"); }),
              "op_cuda: steps must be captured as a CUDA graph, got " + failing + " failed");
    EXPECT_EQ(calls.log, log);
    EXPECT_EQ(calls.num_graphs, 0);
    EXPECT_FALSE(calls.is_capturing);
  }
}

// The first error is told, not the one of the end that follows from it.
TEST(CaptureTest, ALaunchThatFailsEndsTheCapture) {
  for (const std::string failing : {"", "end"}) {
    Calls calls{.failing = failing};
    EXPECT_EQ(message_of(calls, [] { throw CudaError("launch failed"); }),
              "op_cuda: steps must be captured as a CUDA graph, got launch failed");
    EXPECT_EQ(calls.log, failing.empty() ? (Log{"begin", "end", "destroy", "clear_error"})
                                         : (Log{"begin", "end", "clear_error"}));
    EXPECT_EQ(calls.num_graphs, 0);
    EXPECT_FALSE(calls.is_capturing);
  }
}

TEST(CaptureTest, OtherExceptionsPassAsTheyAre) {
  Calls calls;
  EXPECT_THROW(captured(calls, "op_cuda", [] { throw ValueError("not of CUDA"); }), ValueError);
  EXPECT_EQ(calls.log, (Log{"begin", "end", "destroy", "clear_error"}));
}

}  // namespace
}  // namespace paperlab::kernels

// retort: the operator's tool. It speaks the coordinator's REST interface and nothing else.
#include <cstdio>
#include <exception>

#include "coordinator/cli/program.h"

int main(int argc, char** argv) {
  try {
    return retort::cli::Program(RETORT_VERSION).run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "retort: %s\n", error.what());
    return 1;
  }
}

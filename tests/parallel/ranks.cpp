#include "parallel/ranks.h"

#include <gtest/gtest.h>

namespace hadal::test {

namespace {

// Made before the first test and ended behind the last one: MPI has one beginning and one end.
class World : public ::testing::Environment {
 public:
  void SetUp() override { comm = parallel::communicator_from_environment(); }
  void TearDown() override { comm.reset(); }
  std::unique_ptr<parallel::Communicator> comm;
};

// Owned by GoogleTest.
World* const world =
    dynamic_cast<World*>(::testing::AddGlobalTestEnvironment(new World));  // NOLINT

}  // namespace

parallel::Communicator& ranks() {
  return *world->comm;
}

}  // namespace hadal::test

#include <fmt/format.h>

#include <cstdlib>

#include "core/error.h"
#include "parallel/communicator.h"
#include "parallel/self_comm.h"
#ifdef HADAL_WITH_MPI
#include "parallel/mpi/mpi_comm.h"
#endif

namespace hadal::parallel {

namespace {

// How many processes the launcher says there are; 1 when there was none.
int launched_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 1;
}

}  // namespace

std::unique_ptr<Communicator> communicator_from_environment() {
  const int n = launched_processes();
  if (n <= 1) return std::make_unique<SelfComm>();
#ifdef HADAL_WITH_MPI
  return std::make_unique<MpiComm>();
#else
  throw Error(ErrorCode::unsupported,
              fmt::format("started as one of {} processes, but this hadal was built without MPI; "
                          "install libopenmpi-dev and build it again, or start it without mpirun",
                          n));
#endif
}

std::string describe_mpi() {
#ifdef HADAL_WITH_MPI
  return mpi_library_version();
#else
  return "not built in";
#endif
}

}  // namespace hadal::parallel

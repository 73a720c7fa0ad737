// parallel: several processes with one piece of work. The only folder that knows MPI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

namespace hadal::parallel {

// All ranks call the same functions in the same order, with arguments that fit each other; from one
// thread. Sums are added in rank order, rank 0 first, so every rank gets the same bits, in every
// run with as many ranks.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;

  // Element by element, in place.
  void all_reduce_sum(std::span<float> values);
  void all_reduce_sum(std::span<double> values);
  void all_reduce_sum(std::span<std::int64_t> values);

  // Every rank's part, one behind the other in rank order. n_bytes: of each rank's.
  virtual void all_gather(std::span<const std::byte> own, std::span<const std::int64_t> n_bytes,
                          std::span<std::byte> all) = 0;
  // To rank r the next n_sent[r] bytes of `send`; from rank r the next n_received[r] of `receive`.
  virtual void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> n_sent,
                          std::span<std::byte> receive,
                          std::span<const std::int64_t> n_received) = 0;
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void barrier() = 0;
  // Ends every rank, after `why` with the rank in front went to stderr. Where there is no other
  // rank, throws Error cancelled instead.
  [[noreturn]] virtual void abort(const std::string& why) = 0;

  // As many values of each rank; `all` has size() times as many.
  template <class T>
  void all_gather(std::span<const T> own, std::span<T> all);
  // One value to each rank, one from each.
  template <class T>
  void all_to_all(std::span<const T> send, std::span<T> receive);

 protected:
  Communicator() = default;

 private:
  template <class T>
  void sum(std::span<T> values);
  void all_gather_even(std::span<const std::byte> own, std::span<std::byte> all);
  void all_to_all_even(std::span<const std::byte> send, std::span<std::byte> receive);
};

template <class T>
void Communicator::all_gather(std::span<const T> own, std::span<T> all) {
  static_assert(std::is_trivially_copyable_v<T>);
  all_gather_even(std::as_bytes(own), std::as_writable_bytes(all));
}

template <class T>
void Communicator::all_to_all(std::span<const T> send, std::span<T> receive) {
  static_assert(std::is_trivially_copyable_v<T>);
  all_to_all_even(std::as_bytes(send), std::as_writable_bytes(receive));
}

// Calls fn. When it throws on one of several ranks, all of them end, so that none waits for it.
template <class Fn>
decltype(auto) abort_on_error(Communicator& ranks, Fn&& fn) {
  if (ranks.size() == 1) return fn();
  try {
    return fn();
  } catch (const std::exception& e) {
    ranks.abort(e.what());
    throw;  // abort does not return, which not every compiler believes of a virtual function
  }
}

// Under mpirun, or what sets its variables, with several processes: all of them. Else this process
// alone. At most once a process; destroying it is the end of MPI.
// Throws Error unsupported when several processes were started and hadal was built without MPI.
[[nodiscard]] std::unique_ptr<Communicator> communicator_from_environment();

// "Open MPI v4.1.4, ...", or that hadal was built without.
[[nodiscard]] std::string describe_mpi();

}  // namespace hadal::parallel

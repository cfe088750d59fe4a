// Memory of tensors on CPU: one region, whole pages, the lowest gap that is large enough.
//
// PyTorch asks glibc for memory aligned to 64 bytes. To align it, glibc cuts up to 96 bytes off, which small objects
// soon live in, and then a tensor does not fit where one of its own size lay: the heap of a training process grows to
// as much as 2.7 times what lives in it. Here a gap is as large as what left it. Pages are kept for the next tensor, so
// that it pays no page faults.
//
// Shares no state with Python: `bmscale_keep` takes the place of PyTorch's allocator for good. What is smaller than
// LEAST, or finds no room in the region, comes from PyTorch's own.

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

namespace {

constexpr size_t LEAST = 1 << 16, PAGE = 4096;

class Region final : public c10::Allocator {
 public:
  Region(char* begin, size_t size) : begin_(begin), end_(begin + size), top_(begin) {}

  c10::DataPtr allocate(size_t count) override {
    void* data = count >= LEAST ? take((count + PAGE - 1) / PAGE * PAGE) : nullptr;
    if (data == nullptr) data = c10::alloc_cpu(count);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  static Region* only;

  // A child of fork() has none of the threads that might hold the lock.
  static void lock() { only->mutex_.lock(); }
  static void unlock() { only->mutex_.unlock(); }

 private:
  static void release(void* data) {
    char* address = static_cast<char*>(data);
    if (address >= only->begin_ && address < only->end_) {
      only->give(address);
    } else {
      c10::free_cpu(data);
    }
  }

  void* take(size_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    char* address = top_;
    for (auto gap = gaps_.begin(); gap != gaps_.end(); ++gap) {
      if (gap->second < size) continue;
      address = gap->first;
      if (gap->second > size) gaps_.emplace_hint(std::next(gap), address + size, gap->second - size);
      gaps_.erase(gap);
      break;
    }
    if (address == top_) {
      if (size > static_cast<size_t>(end_ - top_)) return nullptr;
      top_ += size;
    }
    sizes_[address] = size;
    return address;
  }

  void give(char* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto known = sizes_.find(address);
    if (known == sizes_.end()) std::abort();  // freed twice
    size_t size = known->second;
    sizes_.erase(known);
    auto next = gaps_.lower_bound(address);
    if (next != gaps_.end() && next->first == address + size) {
      size += next->second;
      next = gaps_.erase(next);
    }
    if (next != gaps_.begin()) {
      auto before = std::prev(next);
      if (before->first + before->second == address) {
        address = before->first;
        size += before->second;
        gaps_.erase(before);
      }
    }
    if (address + size == top_) {
      top_ = address;
    } else {
      gaps_[address] = size;
    }
  }

  char *const begin_, *const end_;
  char* top_;  // Behind it nothing lives.
  std::map<char*, size_t> gaps_;  // Address and bytes; none touches another or the top.
  std::unordered_map<char*, size_t> sizes_;
  std::mutex mutex_;
};

Region* Region::only = nullptr;

}  // namespace

// Keep tensors in a region of `size` bytes of address space; pages that are never written take no memory. Returns
// whether there was room for it. Called once.
extern "C" bool bmscale_keep(size_t size) {
  if (Region::only != nullptr) return true;
  void* begin = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (begin == MAP_FAILED) return false;
  Region::only = new Region(static_cast<char*>(begin), size);  // for as long as the process lives
  pthread_atfork(&Region::lock, &Region::unlock, &Region::unlock);
  c10::SetCPUAllocator(Region::only);
  return true;
}

// The C++ twin of `fleet bench mmu`: the same TLBs, walk caches and two-dimensional walks over the
// same page tables, written plainly.  One CPU, a Cascade Lake, is compiled in.
//
// usage: bench_mmu FOLDER RUNS
// FOLDER holds what the benchmark wrote: guest.entry, ept.entry (int32, 512 a table; 1: a page, 2: a
// table, number above), guest.frame (int32 a table), roots (int64: guest root, EPT root; EPT root
// -1: native) and pages (int64).  Prints accesses, hits, walks and reads, then a rate a run.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <time.h>
#include <vector>

using u64 = uint64_t;
using i32 = int32_t;

static double cpu_now() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

template <typename T> static std::vector<T> load(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    std::vector<T> found(bytes.size() / sizeof(T));
    std::memcpy(found.data(), bytes.data(), found.size() * sizeof(T));
    return found;
}

// A true-LRU store: a set's entries, most recently used first.
template <int SETS, int WAYS> struct Store {
    u64 tag[SETS][WAYS];
    u64 value[SETS][WAYS];
    Store() { std::memset(tag, 0xff, sizeof tag); }
    u64 *find(u64 page, u64 key) {
        u64 *t = tag[page & (SETS - 1)], *v = value[page & (SETS - 1)];
        for (int i = 0; i < WAYS; i++) {
            if (t[i] != key) continue;
            u64 found = v[i];
            for (; i > 0; i--) {
                t[i] = t[i - 1];
                v[i] = v[i - 1];
            }
            t[0] = key;
            v[0] = found;
            return v;
        }
        return nullptr;
    }
    void add(u64 page, u64 key, u64 leads_to) {
        u64 *t = tag[page & (SETS - 1)], *v = value[page & (SETS - 1)];
        for (int i = WAYS - 1; i > 0; i--) {
            t[i] = t[i - 1];
            v[i] = v[i - 1];
        }
        t[0] = key;
        v[0] = leads_to;
    }
};

struct WalkCaches {
    Store<8, 4> pde;
    Store<2, 4> pdpte;
    Store<1, 4> pml4e;
    // Level of the lowest table known on the way to a page, 4 if none is; its number.
    int deepest(u64 page, u64 root, u64 &table) {
        u64 *v;
        if ((v = pde.find(page >> 9, page >> 9))) return table = *v, 1;
        if ((v = pdpte.find(page >> 18, page >> 18))) return table = *v, 2;
        if ((v = pml4e.find(page >> 27, page >> 27))) return table = *v, 3;
        return table = root, 4;
    }
    void remember(int level, u64 page, u64 table) {
        if (level == 2) pde.add(page >> 9, page >> 9, table);
        if (level == 3) pdpte.add(page >> 18, page >> 18, table);
        if (level == 4) pml4e.add(page >> 27, page >> 27, table);
    }
};

struct Machine {
    std::vector<i32> guest, ept, frame;
    u64 guest_root, ept_root;
    bool nested;
    Store<16, 4> l1_4k;
    Store<8, 4> l1_2m;
    Store<128, 12> l2;
    WalkCaches by_guest, by_host;
    Store<4, 4> nested_tlb;
    u64 l1_hits = 0, l2_hits = 0, walks = 0, reads = 0;

    static u64 key(u64 page, int size) { return page | (u64)size << 45; }
    static u64 index(u64 page, int level) { return page >> (9 * (level - 1)) & 511; }

    // Walk the EPT; the level of the leaf, and the frame.
    int walk_ept(u64 gfn, u64 &pfn) {
        u64 table;
        int level = by_host.deepest(gfn, ept_root, table);
        for (;; level--) {
            i32 entry = ept[table * 512 + index(gfn, level)];
            reads++;
            if ((entry & 3) == 1) {
                pfn = (entry >> 2) + (gfn & ((1ull << 9 * (level - 1)) - 1));
                return level;
            }
            table = entry >> 2;
            by_host.remember(level, gfn, table);
        }
    }
    void translate_table(u64 gfn) {
        if (nested_tlb.find(gfn, key(gfn, 0))) return;
        if (nested_tlb.find(gfn >> 9, key(gfn >> 9, 1))) return;
        u64 pfn;
        int size = walk_ept(gfn, pfn) - 1;
        nested_tlb.add(gfn >> 9 * size, key(gfn >> 9 * size, size), pfn);
    }
    int walk(u64 vpn, u64 &pfn) {
        u64 table;
        int level = by_guest.deepest(vpn, guest_root, table);
        bool known = level < 4;
        for (;; level--) {
            if (nested && !known) translate_table(frame[table]);
            i32 entry = guest[table * 512 + index(vpn, level)];
            reads++;
            if ((entry & 3) == 1) {
                pfn = (entry >> 2) + (vpn & ((1ull << 9 * (level - 1)) - 1));
                break;
            }
            table = entry >> 2;
            by_guest.remember(level, vpn, table);
            known = false;
        }
        if (!nested) return level;
        int below = walk_ept(pfn, pfn);
        return below < level ? below : level;
    }
    void access(u64 vpn) {
        u64 *v;
        if (l1_4k.find(vpn, key(vpn, 0)) || l1_2m.find(vpn >> 9, key(vpn >> 9, 1))) {
            l1_hits++;
        } else if ((v = l2.find(vpn, key(vpn, 0)))) {
            l2_hits++;
            l1_4k.add(vpn, key(vpn, 0), *v);
        } else if ((v = l2.find(vpn >> 9, key(vpn >> 9, 1)))) {
            l2_hits++;
            l1_2m.add(vpn >> 9, key(vpn >> 9, 1), *v);
        } else {
            u64 pfn;
            walks++;
            if (walk(vpn, pfn) == 1) {
                l2.add(vpn, key(vpn, 0), pfn);
                l1_4k.add(vpn, key(vpn, 0), pfn);
            } else {
                l2.add(vpn >> 9, key(vpn >> 9, 1), pfn & ~511ull);
                l1_2m.add(vpn >> 9, key(vpn >> 9, 1), pfn & ~511ull);
            }
        }
    }
};

int main(int argc, char **argv) {
    if (argc != 3) return std::fprintf(stderr, "usage: %s FOLDER RUNS\n", argv[0]), 2;
    std::string folder = argv[1];
    auto pages = load<u64>(folder + "/pages");
    auto roots = load<int64_t>(folder + "/roots");
    std::vector<double> rates;
    for (int run = 0; run < std::atoi(argv[2]); run++) {
        Machine *m = new Machine();
        m->guest = load<i32>(folder + "/guest.entry");
        m->ept = load<i32>(folder + "/ept.entry");
        m->frame = load<i32>(folder + "/guest.frame");
        m->guest_root = roots[0];
        m->nested = roots[1] >= 0;
        m->ept_root = m->nested ? roots[1] : 0;
        double begin = cpu_now();
        u64 last = ~0ull;
        for (u64 vpn : pages) {
            if (vpn == last) {
                m->l1_hits++;
                continue;
            }
            last = vpn;
            m->access(vpn);
        }
        rates.push_back(pages.size() / (cpu_now() - begin));
        if (run == 0)
            std::printf("%zu %llu %llu %llu %llu\n", pages.size(), (unsigned long long)m->l1_hits,
                        (unsigned long long)m->l2_hits, (unsigned long long)m->walks,
                        (unsigned long long)m->reads);
        delete m;
    }
    for (double rate : rates) std::printf("%.0f\n", rate);
}

/*
 * A firmware-like guest: discovers the SVSM, sets, reads and enumerates variables, asks for an attestation.
 *
 *     cc -std=c11 -Wall -Wextra -Werror -o example example.c
 *     ./example /run/me/svsm.sock            set, get, enumerate, attest
 *     ./example /run/me/svsm.sock errors     provoke each transport error
 *     ./example /run/me/svsm.sock slow       one call; says "server gone" when the server dies in it
 */
#include "svsm_bridge.h"

#include <stdlib.h>

static const uint8_t variable_protocol[16] = { 0x33, 0xd5, 0x32, 0xed, 0xe6, 0x99, 0x09, 0x42,
                                               0x9c, 0xc0, 0x2d, 0x72, 0xcd, 0xd9, 0x98, 0xa7 };
static const uint8_t vendor[16] = "a C guid, 16 by";
static uint8_t message[SB_MM_BUFFER];

static void die(struct sb *sb, const char *what, int r)
{
    if (r == SB_GONE) {
        printf("server gone\n");
        sb_close(sb);
        exit(9);
    }
    fprintf(stderr, "%s: result %d, error %u (%s), rax %#llx\n", what, r, sb->error_code, sb->error_text,
            (unsigned long long)sb->rax);
    sb_close(sb);
    exit(1);
}

static void put64(size_t at, uint64_t value)
{
    memcpy(message + at, &value, 8);
}

static uint64_t get64(size_t at)
{
    uint64_t value;
    memcpy(&value, message + at, 8);
    return value;
}

/* Header of a variable message: communicate header, function, status. Offsets 0, 24, 32; payload at 40. */
static void variable_header(uint64_t function, size_t payload)
{
    memcpy(message, variable_protocol, 16);
    put64(16, 16 + payload);
    put64(24, function);
    put64(32, 0);
}

static size_t put_name(size_t at, const char *name)
{
    size_t n = strlen(name) + 1;
    for (size_t i = 0; i < n; i++) {
        message[at + 2 * i] = (uint8_t)name[i];
        message[at + 2 * i + 1] = 0;
    }
    return 2 * n;
}

/* GetVariable (1) or SetVariable (3): the EFI_STATUS; *data_size is the value's size afterwards. */
static uint64_t access_variable(struct sb *sb, uint64_t function, const char *name, uint8_t *data, uint64_t *data_size)
{
    uint32_t attributes = 7;
    size_t name_size = put_name(40 + 36, name), room = (size_t)*data_size;
    variable_header(function, 36 + name_size + room);
    memcpy(message + 40, vendor, 16);
    put64(56, room);
    put64(64, name_size);
    memcpy(message + 72, &attributes, 4);
    memset(message + 76 + name_size, 0, room);
    if (function == 3)
        memcpy(message + 76 + name_size, data, room);
    int r = sb_mm_request(sb, message, 40 + 36 + name_size + room);
    if (r != SB_OK)
        die(sb, "variable call", r);
    *data_size = get64(56);
    if (function == 1 && get64(32) == 0)
        memcpy(data, message + 76 + name_size, (size_t)*data_size);
    return get64(32);
}

/* Walks all names with GetNextVariableName (2); returns how many there are. */
static int enumerate(struct sb *sb, int ours)
{
    uint8_t guid[16] = { 0 };
    uint8_t name[1024] = { 0 };
    int found = 0, mine = 0;
    for (;;) {
        variable_header(2, 24 + sizeof name);
        memcpy(message + 40, guid, 16);
        put64(56, sizeof name);
        memcpy(message + 64, name, sizeof name);
        int r = sb_mm_request(sb, message, 64 + sizeof name);
        if (r != SB_OK)
            die(sb, "GetNextVariableName", r);
        if (get64(32))
            break;
        memcpy(guid, message + 40, 16);
        memset(name, 0, sizeof name);
        memcpy(name, message + 64, (size_t)get64(56));
        found++;
        mine += !memcmp(guid, vendor, 16);
    }
    printf("enumerated %d, %d of them mine\n", found, mine);
    return mine == ours ? 0 : 1;
}

/* ATTEST_SERVICES: sizes first, then for real; prints what came back. */
static int attest(struct sb *sb)
{
    const uint64_t operation = SB_RAM_BASE + 0x1000, nonce = SB_RAM_BASE + 0x2000;
    const uint64_t report = SB_RAM_BASE + 0x30000, manifest = SB_RAM_BASE + 0x40000;
    uint64_t want_manifest = 0, want_report = 0;
    memset(sb_at(sb, nonce), 0x5a, 64);
    for (int step = 0; step < 2; step++) {
        uint8_t *at = sb_at(sb, operation);
        uint32_t report_size = (uint32_t)want_report, manifest_size = (uint32_t)want_manifest;
        uint16_t nonce_size = 64;
        memset(at, 0, 0x40);
        memcpy(at + 0x00, &report, 8);
        memcpy(at + 0x08, &report_size, 4);
        memcpy(at + 0x10, &nonce, 8);
        memcpy(at + 0x18, &nonce_size, 2);
        memcpy(at + 0x20, &manifest, 8);
        memcpy(at + 0x28, &manifest_size, 4);
        struct sb_regs regs = { .rax = UINT64_C(1) << 32, .rcx = operation, .rdx = UINT64_MAX, .r8 = UINT64_MAX };
        int r = sb_svsm_call(sb, &regs);
        if (step == 0 && (r != SB_CALL || sb->rax != UINT64_C(0x80000005)))
            die(sb, "size query", r);
        if (step == 1 && r != SB_OK)
            die(sb, "attestation", r);
        want_manifest = regs.rcx;
        want_report = regs.r8;
    }
    printf("attested: report %llu bytes, manifest %llu bytes\n", (unsigned long long)want_report,
           (unsigned long long)want_manifest);
    return 0;
}

static int demo(const char *path)
{
    static struct sb sb;
    uint64_t versions, size;
    uint8_t data[64] = "written by C", back[64] = { 0 };
    int r = sb_boot(&sb, path, 1 << 20);
    if (r != SB_OK)
        die(&sb, "boot", r);
    r = sb_query_protocol(&sb, 4, 1, &versions);
    if (r != SB_OK || versions != UINT64_C(0x100000001))
        die(&sb, "QUERY_PROTOCOL", r);
    printf("UEFI MM versions %#llx, SVSM at %#llx\n", (unsigned long long)versions,
           (unsigned long long)sb.hello.svsm_base);
    for (int n = 0; n < 3; n++) {
        char name[] = "FromC0";
        name[5] = (char)('0' + n);
        size = 13;
        if (access_variable(&sb, 3, name, data, &size))
            die(&sb, "SetVariable", 0);
    }
    size = sizeof back;
    if (access_variable(&sb, 1, "FromC1", back, &size) || size != 13 || memcmp(data, back, 13))
        die(&sb, "GetVariable", 0);
    printf("read back: %s\n", (char *)back);
    size = 0;
    uint64_t status = access_variable(&sb, 1, "Nowhere", back, &size);
    printf("missing variable: status %#llx\n", (unsigned long long)status);
    r = enumerate(&sb, 3);
    r |= attest(&sb);
    int reset = sb_reset(&sb);
    if (reset != SB_OK)
        die(&sb, "reset", reset);
    sb_close(&sb);
    return r;
}

/* --- each transport error ---------------------------------------------------------------------------- */

static int failures;

static void expect(struct sb *sb, unsigned code, int r)
{
    int good = r == SB_ERROR && sb->error_code == code;
    printf("error %2u: %s (%s)\n", code, good ? "as expected" : "NOT AS EXPECTED", sb->error_text);
    failures += !good;
}

/* A raw message, for headers that sb_post would not make. */
static int raw(struct sb *sb, uint32_t magic, uint16_t type, uint32_t length, const void *payload, size_t bytes)
{
    struct sb_header head = { magic, type, 0, length, 7 };
    uint32_t tag;
    int r = sb_write(sb, &head, sizeof head, NULL, 0);
    if (r == SB_OK && bytes)
        r = sb_write(sb, payload, bytes, NULL, 0);
    return r == SB_OK ? sb_take(sb, &tag) : r;
}

static struct sb *again(const char *path)
{
    static struct sb sb;
    static int open_before;
    if (open_before)
        sb_close(&sb);
    open_before = 1;
    int r = sb_connect(&sb, path);
    if (r != SB_OK)
        die(&sb, "connect", r);
    return &sb;
}

static int errors(const char *path)
{
    static struct sb vm;
    const uint32_t magic = UINT32_C(0x31425653);
    struct sb_hello hello = { .lowest = 2, .highest = 3, .roles = 3, .guest_vmpl = 2, .apic_ids = 4 };
    struct sb_call call = { .vcpu = 0, .vmpl = 2, .exit_code = SB_VMGEXIT };
    struct sb_call_reply reply;
    uint32_t tag, answered;
    struct sb *sb;

    sb = again(path);
    expect(sb, 1, raw(sb, magic + 1, 1, 0, NULL, 0));
    sb = again(path);
    expect(sb, 2, raw(sb, magic, 1, 0x20000, NULL, 0));
    sb = again(path);
    expect(sb, 3, raw(sb, magic, 1, sizeof hello, &hello, sizeof hello));
    hello.lowest = 1;
    hello.reserved[0] = 1;
    sb = again(path);
    expect(sb, 9, raw(sb, magic, 1, sizeof hello, &hello, sizeof hello));
    sb = again(path);
    expect(sb, 12, sb_ask(sb, SB_CALL_TYPE, &call, sizeof call, NULL, 0, &reply, sizeof reply));
    sb_close(sb);

    int r = sb_boot(&vm, path, 1 << 20);
    if (r != SB_OK)
        die(&vm, "boot", r);
    call.vmpl = 1;
    expect(&vm, 4, sb_ask(&vm, SB_CALL_TYPE, &call, sizeof call, NULL, 0, &reply, sizeof reply));
    call.vmpl = 2;
    int plain = memfd_create("unsealed", MFD_CLOEXEC);
    if (plain < 0 || ftruncate(plain, SB_PAGE) < 0)
        die(&vm, "memfd", SB_SYSTEM);
    expect(&vm, 5, sb_add_ram(&vm, plain, 0x40000000, SB_PAGE));
    close(plain);
    expect(&vm, 6, sb_add_ram(&vm, vm.ram_fd, SB_RAM_BASE, 1 << 20));
    call.vcpu = 77;
    expect(&vm, 8, sb_ask(&vm, SB_CALL_TYPE, &call, sizeof call, NULL, 0, &reply, sizeof reply));
    call.vcpu = 0;
    expect(&vm, 10, sb_add_vcpu(&vm, 64, 0));
    expect(&vm, 11, sb_reset(&vm));

    /* 7: two calls on one vCPU; the first one is slow (the test's server makes it so) */
    size_t name_size = put_name(76, "Slow");
    variable_header(1, 36 + name_size);
    memcpy(message + 40, vendor, 16);
    put64(56, 0);
    put64(64, name_size);
    memcpy(sb_at(&vm, SB_MM_GPA), message, 76 + name_size);
    *(uint8_t *)sb_at(&vm, SB_CA_GPA) = 1;
    call.regs = (struct sb_regs){ .rax = UINT64_C(4) << 32 | 1, .rcx = SB_MM_GPA, .rdx = SB_MM_BUFFER };
    r = sb_post(&vm, SB_CALL_TYPE, &call, sizeof call, NULL, 0, &tag);
    if (r == SB_OK)
        r = sb_ask(&vm, SB_CALL_TYPE, &call, sizeof call, NULL, 0, &reply, sizeof reply);
    expect(&vm, 7, r);
    r = sb_take(&vm, &answered);
    if (r != SB_OK || answered != tag)
        die(&vm, "the slow call", r);
    sb_close(&vm);
    return failures != 0;
}

static int slow(const char *path)
{
    static struct sb sb;
    uint64_t size = 0;
    int r = sb_boot(&sb, path, 1 << 20);
    if (r != SB_OK)
        die(&sb, "boot", r);
    printf("calling\n");
    fflush(stdout);
    access_variable(&sb, 1, "Slow", message, &size);
    sb_close(&sb);
    printf("served\n");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s SOCKET [errors|slow]\n", argv[0]);
        return 2;
    }
    if (argc > 2 && !strcmp(argv[2], "errors"))
        return errors(argv[1]);
    if (argc > 2 && !strcmp(argv[2], "slow"))
        return slow(argv[1]);
    return demo(argv[1]);
}

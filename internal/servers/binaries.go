package servers

import (
	"archive/tar"
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/xi2/xz"
)

// postgresBinaries returns the directory with bin, lib and share of the Postgres major version, unpacked if need be.
// The unpacked binaries are kept for later runs, in the first directory that account can reach.
func postgresBinaries(major string, account *syscall.Credential) (string, error) {
	home, err := fetched()
	if err != nil {
		return "", err
	}
	found, err := jars(filepath.Join(home, "postgres", major))
	if err != nil {
		return "", err
	}
	caches := []string{filepath.Join(home, "unpacked")}
	for _, temp := range tempDirs() {
		caches = append(caches, filepath.Join(temp, "walferry-servers-"+strconv.Itoa(os.Geteuid())))
	}
	var errs []error
	for _, cache := range caches {
		dir, err := unpackedIn(cache, found[0], account)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("unpack %s: %w", found[0], errors.Join(errs...))
}

// unpackedIn returns the directory below cache that holds what is in the jar. The jar's name contains the version, so
// it is the key.
func unpackedIn(cache, jar string, account *syscall.Credential) (string, error) {
	if err := checkReach(filepath.Dir(cache), account); err != nil {
		return "", err
	}
	if err := os.Mkdir(cache, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(cache)
	if err != nil {
		return "", err
	}
	// In a directory like /tmp, anybody can have put a directory of that name there, with any binaries in it.
	owner := ownerOf(info)
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || (owner != 0 && owner != os.Geteuid()) {
		return "", fmt.Errorf("%s is not a directory that only this account or root can change: remove it", cache)
	}
	if owner == os.Geteuid() {
		if err := os.Chmod(cache, 0o755); err != nil { // whatever the umask
			return "", err
		}
	}
	dir := filepath.Join(cache, strings.TrimSuffix(filepath.Base(jar), ".jar"))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	lock, err := lockFile(filepath.Join(cache, "lock"), true)
	if err != nil {
		return "", err
	}
	defer lock.Close() //nolint:errcheck // nothing was written to it
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // another process has unpacked it meanwhile
	}
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return "", err
	}
	if err := unpack(jar, partial); err != nil {
		return "", err
	}
	return dir, os.Rename(partial, dir)
}

// unpack writes the tree of the .txz inside the jar into the directory dir.
func unpack(jar, dir string) error {
	archive, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer archive.Close() //nolint:errcheck // only read
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only a directory handle
	for _, file := range archive.File {
		if !strings.HasSuffix(file.Name, ".txz") {
			continue
		}
		compressed, err := file.Open()
		if err != nil {
			return err
		}
		defer compressed.Close()
		plain, err := xz.NewReader(compressed, 0)
		if err != nil {
			return err
		}
		return errors.Join(untar(plain, root), openDirectories(root))
	}
	return errors.New("no .txz inside the jar")
}

// openDirectories lets every account into all directories, which the umask may have prevented.
func openDirectories(root *os.Root) error {
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return root.Chmod(name, 0o755)
	})
}

func untar(r io.Reader, root *os.Root) error {
	for archive := tar.NewReader(r); ; {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := untarEntry(archive, entry, root); err != nil {
			return fmt.Errorf("%s: %w", entry.Name, err)
		}
	}
}

func untarEntry(content io.Reader, entry *tar.Header, root *os.Root) error {
	name := filepath.Clean(entry.Name)
	// Not every directory has an entry of its own.
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch entry.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		return root.Symlink(entry.Linkname, name)
	case tar.TypeReg:
		file, err := root.Create(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, content)
		return errors.Join(err, file.Chmod(os.FileMode(entry.Mode).Perm()), file.Close())
	default:
		return fmt.Errorf("unexpected type %q", entry.Typeflag)
	}
}
